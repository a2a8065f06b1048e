"""A tiny model, rendered noise as pictures, and a job over them, for every test of large batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import cases
import numpy as np
import pytest
from PIL import Image

from rapidetr.batch.job import Job, open_job
from rapidetr.batch.predictor import Predictor
from rapidetr.batch.recipe import Recipe, pin_model
from rapidetr.batch.run import plan_of
from rapidetr.checkpoints.file import Checkpoint, save_checkpoint
from rapidetr.core.labels import LabelSpace
from rapidetr.core.preprocessing import Preprocessing
from rapidetr.demo import write_dataset
from rapidetr.runtime.load import load

load_once = cache(load)


@pytest.fixture(autouse=True)
def _models_are_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Building a network takes longer than ten pictures."""
    for module in ("recipe", "predictor"):
        monkeypatch.setattr(f"rapidetr.batch.{module}.load", load_once)


@pytest.fixture(scope="session", autouse=True)
def _ray_gets_its_share() -> Iterator[None]:
    """Ray's processes run at nice 15 otherwise: beside anything else, a test lasts for minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        yield


@pytest.fixture(scope="session")
def make_tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """make_tiny(case) -> file of a tiny random model whose class rows are all named, with ids 10, 20, ..."""

    def make(case: str) -> Path:
        network = cases.network(case)
        rows = network.config.class_rows
        labels = LabelSpace.contiguous([f"c{i}" for i in range(rows - 1)], dataset_ids=[10 * (i + 1) for i in range(rows - 1)])
        checkpoint = Checkpoint(network.state_dict(), network.config, labels, Preprocessing(), "Apache-2.0")
        return save_checkpoint(checkpoint, tmp_path_factory.mktemp("tiny") / f"{case}.safetensors")

    return make


@pytest.fixture(scope="session")
def tiny(make_tiny: Callable[[str], Path]) -> Path:
    return make_tiny("tiny_det")


def draw(path: Path, seed: int) -> Path:
    """A picture of noise, 30 to 60 pixels high and wide."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (*rng.integers(30, 60, 2), 3), np.uint8)).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with 00.png to 09.png."""
    for i in range(10):
        draw(tmp_path / "photos" / f"{i:02d}.png", i)
    return tmp_path / "photos"


@pytest.fixture
def start(tiny: Path, tmp_path: Path) -> Callable[..., tuple[Job, Predictor]]:
    """start(source, ...) -> (job opened in tmp_path/out, its predictor); shards of 3 and threshold 0.1 unless told."""

    def go(
        *sources: object, out: object = None, model: Path = tiny, again: dict[str, bool] | None = None, **recipe: Any
    ) -> tuple[Job, Predictor]:
        pinned = pin_model(str(model))
        asked = {"shard_size": 3, "threshold": 0.1, **recipe}
        chosen = Recipe(tuple(map(str, sources)), pinned.sha256, **asked)
        job = open_job(str(out or tmp_path / "out"), chosen, pinned, **(again or {}))
        return job, Predictor(plan_of(job, device="cpu", batch_size=2))

    return go


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty rendered scenes and a file that is no picture."""
    folder = tmp_path_factory.mktemp("scenes")
    write_dataset(folder, 40, 1, split="test", size_hw=(96, 96))
    (folder / "test" / "broken.jpg").write_bytes(b"no picture")
    return folder / "test"
