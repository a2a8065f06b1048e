"""The models that ship with the package: what they promise on scenes that they were not trained on."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest

import rapidetr
from rapidetr.checkpoints.file import open_checkpoint
from rapidetr.core.detections import Detections
from rapidetr.data import read_dataset
from rapidetr.demo import WORLD, write_dataset
from rapidetr.evaluation import evaluate

HELD_OUT, SCENES, SIZE = 2026, 200, (288, 288)  # trained on seed 0
# what they reach there: AP50:95 and AP50 of boxes (pico) and masks (seg-pico), measured by `rapidetr evaluate`
# seg-pico has 0.541 and 0.829, its aim is 0.50. pico has 0.682 and 0.880: its aims, 0.65 and 0.88, are kept,
# the second so narrowly that a tie rounded otherwise could undo it
LEAST = {"pico": (0.67, 0.875), "seg-pico": (0.52, 0.81)}
WEIGHTS = Path(str(files("rapidetr"))) / "weights"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("held-out"), SCENES, HELD_OUT, split="test", size_hw=SIZE)


@pytest.mark.parametrize("name", LEAST)
def test_files_are_small_half_precision_and_say_where_they_come_from(name: str) -> None:
    file = WEIGHTS / f"{name}.safetensors"
    assert file.stat().st_size <= 8 * 2**20
    checkpoint = open_checkpoint(file)
    assert {str(t.dtype) for t in checkpoint.state.values()} == {"torch.float16"}
    assert checkpoint.license == "Apache-2.0"
    assert (checkpoint.config.name, checkpoint.labels.names, checkpoint.config.size_hw) == (name, WORLD.classes, SIZE)
    record = json.loads((WEIGHTS / f"{name}.json").read_text())
    assert record["runs"][0]["recipe"]["weights"] == "random"
    assert record["runs"][-1]["config"]["name"] == name
    assert sum(run["hours"] for run in record["runs"]) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", LEAST)
def test_accuracy_on_held_out_scenes(name: str, scenes: Path) -> None:
    found = evaluate(rapidetr.load(name, device="cpu"), read_dataset(scenes, "test"))
    measure = found.masks if name.startswith("seg-") else found.boxes
    assert measure is not None
    assert measure.metrics["AP"] >= LEAST[name][0]
    assert measure.metrics["AP50"] >= LEAST[name][1]


def test_the_first_scene_is_found(scenes: Path) -> None:
    """Most things of one picture, by name."""
    record = read_dataset(scenes, "test").images[0]
    found: Detections = rapidetr.load("pico", device="cpu").predict(record.path, threshold=0.3)[0]
    there = {WORLD.classes[i] for i in record.class_ids}
    assert len(there & set(found.class_names)) >= len(there) / 2
