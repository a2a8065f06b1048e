"""Weights under PML-1.0 are trained and evaluated only where that licence was accepted; what comes out stays under it."""

from __future__ import annotations

from pathlib import Path

import cases
import pytest

from rapidetr.checkpoints.file import Checkpoint, open_checkpoint, save_checkpoint
from rapidetr.cli.main import main
from rapidetr.core.errors import LicenseRefused
from rapidetr.core.labels import LabelSpace
from rapidetr.core.preprocessing import Preprocessing
from rapidetr.data.read import read_dataset
from rapidetr.demo.dataset import write_dataset
from rapidetr.training import run as run_module
from rapidetr.training.run import Run, train

PML = "PML-1.0"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "data"
    for split in ("train", "valid"):
        write_dataset(folder, 2, 5, split=split, size_hw=(96, 96))
    return folder


@pytest.fixture
def brought(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("RAPIDETR_ACCEPT_LICENSE", raising=False)
    network = cases.network("tiny_det")
    names = read_dataset(scenes).labels.names[:6]
    return save_checkpoint(
        Checkpoint(network.state_dict(), network.config, LabelSpace.contiguous(names), Preprocessing(), PML),
        tmp_path / "brought.safetensors",
    )


class Stopped(Exception):
    """Instead of training."""


def stop(course: object) -> None:
    raise Stopped


def test_training_needs_it_at_the_start_and_when_it_goes_on(
    scenes: Path, brought: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "fit", stop)
    out = tmp_path / "run"
    with pytest.raises(LicenseRefused, match=r"brought\.safetensors is under PML-1\.0"):
        train(scenes, model=brought, out=out, device="cpu")
    with pytest.raises(Stopped):
        train(scenes, model=brought, out=out, device="cpu", accept_license=PML)
    start = open_checkpoint(out / "baseline.safetensors")
    assert start.license == PML
    (out / "last").mkdir(exist_ok=True)
    (out / "last" / "state.safetensors").touch()
    with pytest.raises(LicenseRefused, match=r"run is under PML-1\.0"):
        train(scenes, model=brought, out=out, device="cpu")
    save_checkpoint(start, out / "best.safetensors")
    with pytest.raises(LicenseRefused, match=r"best\.safetensors is under PML-1\.0"):
        _ = Run(out, {}).best
    assert Run(out, {}, PML).best.license == PML


def test_the_verbs_take_it(
    scenes: Path, brought: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_module, "fit", stop)
    verbs = {
        "train": ["train", str(scenes), "--model", str(brought), "--out", str(tmp_path / "run"), "--device", "cpu"],
        "evaluate": ["evaluate", str(brought), "--data", str(scenes), "--device", "cpu"],
    }
    for words in verbs.values():
        assert main(words) == 2
        assert "brought.safetensors is under PML-1.0" in capsys.readouterr().err
    assert main([*verbs["train"], "--accept-license", PML]) == 2
    assert "unexpected Stopped" in capsys.readouterr().err  # it came as far as training
    assert main([*verbs["evaluate"], "--accept-license", PML]) == 0
