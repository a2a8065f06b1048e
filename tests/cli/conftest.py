"""A command line run in this process, a tiny model and a few pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cases
import numpy as np
import pytest
from PIL import Image

from rapidetr.checkpoints.file import Checkpoint, save_checkpoint
from rapidetr.cli.main import main
from rapidetr.core.config import ModelConfig
from rapidetr.core.labels import LabelSpace
from rapidetr.core.preprocessing import Preprocessing
from rapidetr.model.build import build

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """run(*words) -> (exit status, stdout, stderr), in an empty folder."""
    monkeypatch.chdir(tmp_path)
    for variable in ("HOME", "RAPIDETR_HOME"):  # no weights of this computer
        monkeypatch.setenv(variable, str(tmp_path / "home"))
    for variable in ("RF_HOME", "ROBOFLOW_HOME", "RAPIDETR_ACCEPT_LICENSE"):
        monkeypatch.delenv(variable, raising=False)

    def call(*words: object) -> tuple[int, str, str]:
        try:
            status = main([str(word) for word in words])
        except SystemExit as end:  # argparse ends so
            status = int(end.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """make_model(case, license=...) -> path of a tiny random model in our format, with three classes besides its other rows."""

    def make(case: str = "tiny_det", license: str = "Apache-2.0") -> Path:
        config: ModelConfig = replace(cases.config_of(case), name=case.replace("_", "-"), class_rows=4, groups=2)
        labels = LabelSpace.contiguous(["cat", "dog", "7"], dataset_ids=[10, 20, 30])
        state = build(config, seed=1).state_dict()
        checkpoint = Checkpoint(state, config, labels, Preprocessing(), license, {"source": "a test"})
        return save_checkpoint(checkpoint, tmp_path_factory.mktemp("models") / f"{case}.safetensors")

    return make


@pytest.fixture(scope="session")
def model(make_model: Callable[..., Path]) -> Path:
    return make_model()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with one.png (40x60, height x width), two.jpg and a subfolder with another one.png."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for i, (name, size_hw) in enumerate({"one.png": (40, 60), "two.jpg": (70, 50), "sub/one.png": (30, 30)}.items()):
        pixels = np.random.default_rng(i).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder
