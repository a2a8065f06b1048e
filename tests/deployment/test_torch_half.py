"""Torch artifacts: which are tried where, and what they store."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import cases
import numpy as np
import pytest

import rapidetr
from rapidetr.core.labels import LabelSpace
from rapidetr.deployment.technique import Order
from rapidetr.deployment.torch_compile import COMPILE, COMPILE_BFLOAT16, COMPILE_FLOAT16
from rapidetr.deployment.torch_folded import FOLDED
from rapidetr.deployment.torch_half import BFLOAT16, FLOAT16, why_not
from rapidetr.runtime.detector import Detector
from rapidetr.runtime.torch_engine import TorchEngine

PICTURE = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)


@pytest.fixture
def order(tmp_path: Path) -> Order:
    detector = Detector.from_module(cases.network("tiny_det"), LabelSpace.contiguous("abcdef"))
    detector.engine = TorchEngine(detector.model, size_hw=(48, 80), decoder_layers=1, queries=9)
    return Order(detector, detector.save(tmp_path / "tiny.safetensors"), command="made by a test")


def processor(root: Path, flags: str) -> Path:
    (root / "proc").mkdir(parents=True)
    (root / "proc" / "cpuinfo").write_text(f"model name : x\nflags : {flags}\n")
    return root


def test_bfloat16_is_tried_where_the_processor_multiplies_it(tmp_path: Path) -> None:
    old, new = processor(tmp_path / "old", "avx2 avx512f fma"), processor(tmp_path / "new", "avx2 avx512_bf16")
    assert why_not("bfloat16", "cpu", old).startswith("this processor has neither avx512_bf16 nor amx_bf16")
    assert why_not("bfloat16", "cpu", new) is None
    assert why_not("bfloat16", "cpu", processor(tmp_path / "amx", "amx_tile amx_bf16")) is None
    assert why_not("bfloat16", "cuda", old) is None


def test_float16_is_for_cuda(order: Order) -> None:
    assert FLOAT16.fits(order) == "float16 is fast on CUDA alone; the device is cpu"
    assert COMPILE_FLOAT16.fits(order) == FLOAT16.fits(order)
    assert why_not("float16", "cuda:1") is None


def test_a_technique_asks_about_its_own_processor(order: Order, tmp_path: Path) -> None:
    assert replace(BFLOAT16, root=processor(tmp_path / "a", "avx2")).fits(order)
    assert replace(BFLOAT16, root=processor(tmp_path / "b", "amx_bf16")).fits(order) is None


def test_compiling_needs_a_compiler(order: Order, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/x" if name == "my-c++" else None)
    monkeypatch.setattr("sys.platform", "linux")
    assert COMPILE.fits(order) == "torch.compile needs a C++ compiler, and there is no g++ or clang++; install one, or set CXX"
    assert COMPILE_BFLOAT16.fits(order) == COMPILE.fits(order)
    monkeypatch.setenv("CXX", "my-c++")
    assert COMPILE.fits(order) is None


@pytest.mark.parametrize(
    ("technique", "engine", "precision"),
    [(FOLDED, "torch-folded", "float32"), (BFLOAT16, "torch-folded", "bfloat16"), (COMPILE, "torch-compile", "float32")],
)
def test_what_is_stored(order: Order, tmp_path: Path, technique: object, engine: str, precision: str) -> None:
    artifact = technique.make(order, tmp_path / "artifact")
    m = artifact.manifest
    assert (m.engine, m.precision, m.size_hw, m.decoder_layers, m.queries) == (engine, precision, (48, 80), 1, 9)
    assert (m.source["name"], m.command, m.parameters) == ("tiny.safetensors", "made by a test", {"technique": technique.name})
    assert sorted(artifact.files) == ["best.safetensors", "lock.json"]
    if engine == "torch-folded":
        loaded = rapidetr.load(artifact.path)
        assert (loaded.engine.name, loaded.engine.precision, loaded.size_hw) == (engine, precision, (48, 80))
        if precision == "float32":
            found, wanted = loaded.predict(PICTURE, 0.0)[0], order.detector.predict(PICTURE, 0.0)[0]
            assert np.array_equal(found.head_rows, wanted.head_rows)
            np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-4)  # as asked of the folded graph's logits
