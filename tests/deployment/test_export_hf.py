"""Folders for transformers: read back whole, and equal to what transformers itself answered (tests/golden/make_huggingface.py)."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import make_huggingface as made
import numpy as np
import pytest
import torch

from rapidetr.checkpoints.file import open_checkpoint
from rapidetr.core.config import VARIANTS
from rapidetr.core.errors import CheckpointError, ConfigError
from rapidetr.core.labels import LabelSpace
from rapidetr.deployment.export_hf import _check, export_hf
from rapidetr.model.build import build
from rapidetr.runtime.detector import Detector


@pytest.fixture(scope="module")
def answers() -> dict[str, np.ndarray]:
    with np.load(Path(made.__file__).with_name("huggingface.npz")) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("hf")
    for name in ("pico_eps", "seg-pico"):
        export_hf(made.detector(name), where / name)
    return where


def answer(network: torch.nn.Module, name: str) -> dict[str, np.ndarray]:
    with torch.no_grad():
        found = network(made.picture(name))
    masks = {} if found.masks is None else {"masks": found.masks[:, made.QUERY, made.PIXEL, made.PIXEL].numpy()}
    return {"logits": found.logits[:, made.QUERY].numpy(), "boxes": found.boxes[:, made.QUERY].numpy(), **masks}


@pytest.mark.parametrize("name", made.CONFIGS)
def test_transformers_answers_as_we_do(name: str, answers: dict[str, np.ndarray]) -> None:
    for what, found in answer(made.detector(name).model, name).items():
        np.testing.assert_allclose(found, answers[f"{name}.{what}"], atol=1e-4, rtol=0)  # fp32 rounding was 2e-5
    assert answers[f"{name}.names"].tolist() == [*made.LABELS.names, "LABEL_8"]
    gray = (np.float32(128 / 255) - np.array(made.FEED.mean)) / np.array(made.FEED.std)
    np.testing.assert_allclose(answers[f"{name}.prepared"], gray, atol=1e-5)  # of values of about 1 in fp32


def test_the_stored_epsilon_is_what_makes_them_equal(answers: dict[str, np.ndarray]) -> None:
    """Otherwise the case would prove nothing of it."""
    detector = made.detector("pico_eps")
    other = build(replace(detector.config, projector_eps=1e-5)).eval()
    other.load_state_dict(detector.model.state_dict())
    assert np.abs(answer(other, "pico_eps")["logits"] - answers["pico_eps.logits"]).max() > 1e-3


@pytest.mark.parametrize("name", ["pico_eps", "seg-pico"])
def test_a_folder_reads_back_as_it_was(folders: Path, name: str, answers: dict[str, np.ndarray]) -> None:
    before, after = made.detector(name), open_checkpoint(folders / name / "model.safetensors")
    assert after.config == made.CONFIGS[name]
    assert (after.labels, after.preprocessing, after.license) == (made.LABELS, made.FEED, "Apache-2.0")
    assert {n: t.tolist() for n, t in after.state.items() if t.numel() < 9} == {
        n: t.tolist() for n, t in before.model.state_dict().items() if t.numel() < 9
    }
    assert all(torch.equal(after.state[n], t) for n, t in before.model.state_dict().items())
    for what, found in answer(after.network(), name).items():
        np.testing.assert_allclose(found, answers[f"{name}.{what}"], atol=1e-4, rtol=0)


def test_the_running_size_comes_from_the_processor(tmp_path: Path) -> None:
    export_hf(made.detector("pico_size"), tmp_path / "hf")
    assert open_checkpoint(tmp_path / "hf" / "model.safetensors").config == made.CONFIGS["pico_size"]
    (tmp_path / "hf" / "preprocessor_config.json").unlink()
    assert open_checkpoint(tmp_path / "hf" / "model.safetensors").config.size_hw == (288, 288)


def test_files_of_others_tell_their_classes_and_epsilon(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "pico_eps", tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    record = json.loads(path.read_text())
    del record["rapidetr"]
    record["id2label"] = {"0": "N/A", "1": "ant", "2": "LABEL_2", "3": "bee"}
    path.write_text(json.dumps(record))
    found = open_checkpoint(path.with_name("model.safetensors"))
    assert found.labels == LabelSpace(("ant", "bee"), (1, 3), (1, 3), 9)
    record |= {"id2label": {str(i): f"k{i}" for i in range(9)}}  # as its own trainer leaves a head: every row is a class
    del record["layer_norm_eps"]
    path.write_text(json.dumps(record))
    found = open_checkpoint(path.with_name("model.safetensors"))
    assert found.labels == LabelSpace.contiguous([f"k{i}" for i in range(9)], head_rows=9)
    assert found.config.projector_eps == 1e-5
    path.write_text(json.dumps({**record, "layer_norm_eps": -1}))
    with pytest.raises(CheckpointError, match=r"config\.json: damaged: projector_eps is -1\.0; expected a small number above 0"):
        open_checkpoint(path.with_name("model.safetensors"))


def test_coco_names_lie_on_their_rows(tmp_path: Path) -> None:
    network = build(replace(VARIANTS["pico"], class_rows=91, projector_eps=1e-5), seed=0)
    package = export_hf(Detector.from_module(network, LabelSpace.coco()), tmp_path / "hf")
    names = json.loads((tmp_path / "hf" / "config.json").read_text())["id2label"]
    assert (len(names), names["0"], names["1"], names["12"], names["90"]) == (91, "LABEL_0", "person", "LABEL_12", "toothbrush")
    assert (package.shift, package.close) == ({}, True)
    assert package.notes == ("outputs are the same numbers with the epsilon as stored, layer_norm_eps 1e-05 in config.json",)


def test_the_shift_of_the_other_epsilon_is_told(tmp_path: Path) -> None:
    package = export_hf(made.detector("pico_eps"), tmp_path / "hf")
    assert package.shift is not None
    assert package.shift["logits"] > 1e-3
    assert f"1e-05, shifts them on pictures of noise by up to: logits {package.shift['logits']:.1e}, boxes " in package.notes[0]
    assert set(package.files) == {"config.json", "model.safetensors", "preprocessor_config.json"}


def test_what_transformers_cannot_hold_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cannot hold this large-deprecated: levels P3, P5 \(expected P4\); export it to another format"):
        _check(VARIANTS["large-deprecated"])
    with pytest.raises(ConfigError, match=r"size 288x320 \(expected a square\)"):
        _check(VARIANTS["pico"].at(size_hw=(288, 320)))
    for name, config in VARIANTS.items():
        if name != "large-deprecated":
            _check(config)
