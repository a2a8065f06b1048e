"""The folded graph as an engine: the same answers as the plain network, from pixels."""

from __future__ import annotations

from pathlib import Path

import cases
import numpy as np
import pytest
import torch

from rapidetr.checkpoints.file import Checkpoint, save_checkpoint
from rapidetr.core.clock import StageClock
from rapidetr.core.errors import ConfigError
from rapidetr.core.labels import LabelSpace
from rapidetr.core.preprocessing import Preprocessing
from rapidetr.runtime.artifact import Manifest, load_artifact, write_artifact
from rapidetr.runtime.detector import Detector
from rapidetr.runtime.folded_engine import FoldedEngine
from rapidetr.runtime.load import load

FEED = Preprocessing(mean=(0.3, 0.4, 0.5), std=(0.2, 0.3, 0.4))
LABELS = LabelSpace.contiguous(["ant", "bee", "cat", "dog", "eel"], head_rows=7)
PICTURES = [np.random.default_rng(i).integers(0, 256, (50, 70 + i, 3), np.uint8) for i in range(3)]
LOGITS, BOXES = 1e-4, 1e-5  # what is asked of the folded graph; rounding in fp32 reaches half of it


def machine(device: str) -> dict[str, object]:
    return {"version": 1, "device": device}


def checkpoint_of(case: str, feed: Preprocessing = FEED) -> Checkpoint:
    network = cases.network(case)
    return Checkpoint(network.state_dict(), network.config, LABELS, feed, "Apache-2.0")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    return {case: save_checkpoint(checkpoint_of(case), folder / f"{case}.safetensors") for case in ("tiny_det", "tiny_seg")}


@pytest.mark.parametrize("filter", ["bilinear", "bilinear-antialias"])
@pytest.mark.parametrize(
    ("case", "cut"), [("tiny_det", {"size_hw": (48, 96), "queries": 9}), ("tiny_seg", {"size_hw": (80, 48), "decoder_layers": 2})]
)
def test_same_answers_in_batches_of_one_to_three(files: dict[str, Path], case: str, cut: dict, filter: str) -> None:
    plain = load(files[case], device="cpu", **cut)
    engine = FoldedEngine(plain.model, FEED, **cut)
    assert (engine.size_hw, engine.name, engine.precision) == (plain.size_hw, "torch-folded", "float32")
    for count in (1, 2, 3):
        given, wanted = (e.prepare(PICTURES[:count], FEED, filter, None) for e in (engine, plain.engine))
        assert given.pixels.dtype == (np.uint8 if filter == "bilinear-antialias" else np.float32)
        assert given.geometries == wanted.geometries
        found, known = engine.run(given.pixels), plain.engine.run(wanted.pixels)
        assert np.abs(found.logits - known.logits).max() < LOGITS
        assert np.abs(found.boxes - known.boxes).max() < BOXES
        assert (found.masks is None) == (known.masks is None)
        if known.masks is not None:
            assert np.abs(found.masks - known.masks).max() < LOGITS


def make(source: Path, folder: Path, engine: str, precision: str = "float32", **cut: object) -> Detector:
    detector = load(source, device="cpu", **cut)
    made = Manifest.of(detector, source=source, command="test", parameters={})
    record = {**made.to_dict(), "engine": engine, "precision": precision}
    write_artifact(folder, {"best.safetensors": source}, Manifest.from_dict(record), describe=machine)
    return load_artifact(folder, describe=machine)


def test_an_artifact_gives_the_same_detections(files: dict[str, Path], tmp_path: Path) -> None:
    cut = {"size_hw": (48, 80), "decoder_layers": 2, "queries": 17}
    plain, folded = load(files["tiny_seg"], device="cpu", **cut), make(files["tiny_seg"], tmp_path / "a", "torch-folded", **cut)
    assert (folded.engine.decoder_layers, folded.engine.queries, folded.labels, folded.license) == (2, 17, LABELS, "Apache-2.0")
    for options in ({}, {"classes": ["cat"]}, {"max_detections": 5}, {"max_detections": 40}, {"include_unnamed": True}, {"tile": 40}):
        for batch_size in (1, 3):
            found = folded.predict(PICTURES, 0.02, batch_size=batch_size, **options)
            wanted = plain.predict(PICTURES, 0.02, batch_size=batch_size, **options)
            for a, b in zip(found, wanted, strict=True):
                assert np.array_equal(a.head_rows, b.head_rows), options
                np.testing.assert_allclose(a.scores, b.scores, atol=LOGITS)
                np.testing.assert_allclose(a.boxes_xyxy_px, b.boxes_xyxy_px, atol=72 * BOXES)  # of a picture of 72 pixels
                assert np.abs(a.masks.areas - b.masks.areas).max(initial=0) <= 2  # logits that close to 0 may change sides


def test_half_precision_keeps_geometry_and_stays_finite(files: dict[str, Path], tmp_path: Path) -> None:
    half = make(files["tiny_det"], tmp_path / "a", "torch-folded", "bfloat16")
    assert (half.engine.precision, half.engine.graph.class_head.weight.dtype) == ("bfloat16", torch.bfloat16)
    assert half.engine.graph.anchors.dtype == torch.float32
    batch = half.engine.prepare(PICTURES, FEED, "bilinear-antialias", None)
    raw, exact = half.engine.run(batch.pixels), FoldedEngine(cases.network("tiny_det"), FEED).run(batch.pixels)
    assert raw.logits.dtype == raw.boxes.dtype == np.float32
    assert np.isfinite(raw.logits).all()
    assert np.isfinite(raw.boxes).all()
    # order and pairing of queries may flip on random weights: what bfloat16 does to the scores as a whole is small
    assert np.abs(np.sort(raw.logits, None) - np.sort(exact.logits, None)).mean() < 0.05


def test_stages_and_wrong_use(files: dict[str, Path]) -> None:
    engine, clock = FoldedEngine(cases.network("tiny_det"), FEED), StageClock()
    engine.run(np.zeros((1, 64, 64, 3), np.uint8), clock)
    assert set(clock.seconds) == {"transfer", "run"}
    with pytest.raises(ConfigError, match=r"batch has shape \[1, 3, 64, 64\]; expected \[B, 64, 64, 3\], pixels from 0 to 255"):
        engine.run(np.zeros((1, 3, 64, 64), np.float32))
    with pytest.raises(ConfigError, match="precision is 'int8'; expected one of float32, bfloat16, float16"):
        FoldedEngine(cases.network("tiny_det"), FEED, precision="int8")
    with pytest.raises(ConfigError, match="queries is 99"):
        FoldedEngine(cases.network("tiny_det"), FEED, queries=99)


def test_a_batch_of_a_compiled_graph_runs_picture_by_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def compile(graph: torch.nn.Module, **options: object) -> object:
        def run(images: torch.Tensor) -> object:
            sizes.append(len(images))
            return graph(images)

        return run

    monkeypatch.setattr(torch, "compile", compile)
    compiled = FoldedEngine(cases.network("tiny_seg"), FEED, compiled=True)
    assert (compiled.name, sizes, compiled.compile_s > 0) == ("torch-compile", [1], True)
    batch = compiled.prepare(PICTURES, FEED, "bilinear", None)
    found, wanted = compiled.run(batch.pixels), FoldedEngine(cases.network("tiny_seg"), FEED).run(batch.pixels)
    assert sizes == [1] * 4
    assert np.abs(found.logits - wanted.logits).max() < LOGITS
    assert np.abs(found.masks - wanted.masks).max() < LOGITS


@pytest.mark.slow
def test_the_real_compiler(files: dict[str, Path], tmp_path: Path) -> None:
    shutil = pytest.importorskip("shutil")
    if not shutil.which("g++"):
        pytest.skip("there is no C++ compiler (g++)")
    plain, compiled = load(files["tiny_det"], device="cpu"), make(files["tiny_det"], tmp_path / "a", "torch-compile")
    assert compiled.engine.compile_s > 0
    given = compiled.engine.prepare(PICTURES, FEED, "bilinear-antialias", None)
    wanted = plain.engine.run(plain.engine.prepare(PICTURES, FEED, "bilinear-antialias", None).pixels)
    assert np.abs(compiled.engine.run(given.pixels).logits - wanted.logits).max() < LOGITS
