"""From names and files to detectors: arguments, licences, offline messages."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cases
import pytest
import torch

import rapidetr
from rapidetr.checkpoints.file import Checkpoint, save_checkpoint, save_official
from rapidetr.checkpoints.weights import WEIGHTS
from rapidetr.core.errors import CheckpointError, CheckpointMissing, ConfigError, DownloadError, LicenseRefused, NotSupportedYet
from rapidetr.core.labels import LabelSpace
from rapidetr.core.preprocessing import Preprocessing


@pytest.fixture
def tiny_file(tmp_path: Path) -> Path:
    network = cases.network("tiny_det")
    labels = LabelSpace.contiguous("abcdef")
    return save_checkpoint(
        Checkpoint(network.state_dict(), network.config, labels, Preprocessing(), "Apache-2.0"), tmp_path / "t.safetensors"
    )


def test_random_weights_are_reproducible_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    a, b, c = (rapidetr.load("nano", weights="random", seed=s, device="cpu") for s in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)
    equal = [torch.equal(x, y) for x, y in zip(a.model.parameters(), b.model.parameters(), strict=True)]
    assert all(equal)
    assert not torch.equal(a.model.class_head.weight, c.model.class_head.weight)
    assert a.class_names[0] == "person"
    assert a.labels.dataset_ids[-1] == 90


def test_a_name_without_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RF_HOME", "ROBOFLOW_HOME", "RAPIDETR_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAPIDETR_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("RAPIDETR_OFFLINE", "1")
    with pytest.raises(DownloadError) as caught:
        rapidetr.load("nano")
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "rf-detr-nano.pth",
        "https://",
        "fb6504cce7fbdc783f7a46991f07639f",
        str(tmp_path / "cache" / "weights"),
        "RAPIDETR_MIRROR",
    ):
        assert part in message


def test_weights_under_another_licence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAPIDETR_ACCEPT_LICENSE", raising=False)
    with pytest.raises(LicenseRefused, match=r"PML-1\.0"):
        rapidetr.load("xlarge")
    with pytest.raises(LicenseRefused):  # accepted, but never downloaded
        rapidetr.load("xlarge", accept_license="PML-1.0")
    file = pml_file(tmp_path)
    with pytest.raises(LicenseRefused, match=r"accept_license"):
        rapidetr.load(file, device="cpu")
    accepted = rapidetr.load(file, accept_license="PML-1.0", device="cpu")
    assert (accepted.license, accepted.config.name) == ("PML-1.0", "xlarge")


def pml_file(folder: Path) -> Path:
    """A file of XLarge's shapes, with zeros for weights: the licence hangs on the shapes, not on a name in the file."""
    from rapidetr.checkpoints.table import from_ours
    from rapidetr.core.config import VARIANTS
    from rapidetr.model.build import build_empty

    state = from_ours(build_empty(VARIANTS["xlarge"]).state_dict(), VARIANTS["xlarge"])
    torch.save({"model": {n: torch.zeros(1).expand(t.shape).clone() for n, t in state.items()}}, folder / "brought.pth")
    return folder / "brought.pth"


def test_sizes_layers_queries_and_types_are_public(tiny_file: Path) -> None:
    d = rapidetr.load(tiny_file, size_hw=(48, 96), decoder_layers=1, queries=9, dtype="bfloat16", device="cpu")
    assert (d.size_hw, d.engine.precision) == ((48, 96), "bfloat16")
    assert rapidetr.load(tiny_file, size_hw=80, device="cpu").size_hw == (80, 80)
    with pytest.raises(ConfigError, match="image height 50 is not a multiple of 16"):
        rapidetr.load(tiny_file, size_hw=50)


def test_threads_are_set_when_asked(tiny_file: Path) -> None:
    before = torch.get_num_threads()
    try:
        rapidetr.load(tiny_file, threads=1, device="cpu")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    with pytest.raises(ConfigError, match="threads is 0; expected at least 1"):
        rapidetr.load(tiny_file, threads=0)


def test_wrong_arguments_are_named(tiny_file: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointMissing, match="nana: neither a file nor a model name; models: pico, nano, small"):
        rapidetr.load("nana")
    with pytest.raises(FileNotFoundError, match=r"missing\.pth: no such file"):
        rapidetr.load(tmp_path / "missing.pth")
    with pytest.raises(ConfigError, match="weights is 'imagenet'; expected 'pretrained' or 'random'"):
        rapidetr.load("nano", weights="imagenet")
    with pytest.raises(ConfigError, match="device is 'gpu9'; expected auto, cpu, cuda"):
        rapidetr.load(tiny_file, device="gpu9")
    with pytest.raises(CheckpointMissing, match="is a folder"):
        rapidetr.load(tmp_path)
    with pytest.raises(NotSupportedYet, match="keypoint"):
        rapidetr.load("keypoint-preview")
    with pytest.raises(CheckpointError, match="holds a nano, not a small"):
        rapidetr.load(tiny_file, model="small")


def test_a_file_of_another_variant_is_refused_and_the_right_one_loads_little(tmp_path: Path) -> None:
    network = rapidetr.build("nano", num_classes=2, seed=0)
    checkpoint = Checkpoint(network.state_dict(), network.config, LabelSpace.contiguous("ab"), Preprocessing(), "")
    path = save_official(checkpoint, tmp_path / "mine.pth")
    with pytest.raises(
        CheckpointError, match=r"mine\.pth: the file is no medium: decoder_layers 2 \(expected 4\); the file looks like nano"
    ):
        rapidetr.load(path, model="medium")
    loaded = rapidetr.load(path, device="cpu")
    assert (loaded.class_names, loaded.config.name, loaded.size_hw) == (["a", "b"], "nano", (384, 384))
    code = f"""
import sys, numpy, rapidetr
rapidetr.load({str(path)!r}, device="cpu", size_hw=(64, 64)).predict([numpy.zeros((64, 64, 3), numpy.uint8)])
ours = {{name: len(open(m.__file__).readlines()) for name, m in sys.modules.items() if name.startswith("rapidetr")}}
print(sum(ours.values()), sorted(ours))
"""
    lines, _, names = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.partition(" ")
    assert int(lines) <= 4000, f"one prediction reads {lines} lines of ours; import at the top only what every prediction needs: {names}"


def test_build_is_a_plain_module() -> None:
    network = rapidetr.build("nano", num_classes=3)
    assert isinstance(network, torch.nn.Module)
    assert network.training
    assert network.class_head.out_features == 4
    with torch.no_grad():
        output = network.eval()(torch.zeros(1, 3, 96, 64))
    # 24 tokens for 300 queries: the other queries start from their learned boxes alone
    assert output.logits.shape == (1, 300, 4)
    with pytest.raises(ConfigError, match="num_classes is 0"):
        rapidetr.build("nano", num_classes=0)


@pytest.mark.parametrize("name", ["pico", "seg-pico"])
def test_small_models_come_with_the_package(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rapidetr.checkpoints.weights.files", lambda package: tmp_path)
    monkeypatch.setattr("rapidetr.checkpoints.download.fetch", lambda entry: pytest.fail("went to the network"))
    monkeypatch.setitem(WEIGHTS, name, replace(WEIGHTS[name], sha256=None))
    with pytest.raises(CheckpointError, match=rf"{name}\.safetensors: expected the weights of {name}, which are part of"):
        rapidetr.load(name, device="cpu")
    network = rapidetr.build(name, seed=1)
    labels = LabelSpace.contiguous([f"thing {i}" for i in range(8)])
    start = Checkpoint(network.state_dict(), network.config, labels, Preprocessing(), "")
    save_checkpoint(start, tmp_path / "weights" / f"{name}.safetensors", dtype=torch.bfloat16)
    loaded = rapidetr.load(name, device="cpu")
    assert (loaded.config.name, loaded.license, loaded.class_names[7]) == (name, "Apache-2.0", "thing 7")
    assert torch.equal(loaded.model.class_head.weight, network.class_head.weight.bfloat16().float())
    assert capsys.readouterr().err == ""


def test_list_models() -> None:
    assert rapidetr.list_models()[:4] == ["pico", "nano", "small", "medium"]
    assert all(name.startswith("seg-") for name in rapidetr.list_models("segment"))
    assert len(rapidetr.list_models()) == 15 + 2  # published, and in the package
    with pytest.raises(ConfigError, match="task is 'pose'; expected detect or segment"):
        rapidetr.list_models("pose")


def test_a_folder_that_is_called_like_a_model_does_not_hide_it(tmp_path, monkeypatch):
    """Results of an earlier command often lie in such a folder; one with weights in it is a run, and comes first."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pico").mkdir()
    (tmp_path / "pico" / "street.jpg").write_bytes(b"")
    known = rapidetr.load("pico", device="cpu")
    assert known.class_names[0] == "die"
    rapidetr.load("nano", weights="random", seed=0, size_hw=64, device="cpu").save(tmp_path / "pico" / "best.safetensors")
    assert rapidetr.load("pico", device="cpu").config.name == "nano"


def test_a_name_and_another_model_contradict_each_other() -> None:
    for weights in ("pretrained", "random"):
        with pytest.raises(ConfigError, match=r"^pico is the name of a model, and model='nano' of another one; leave model= out$"):
            rapidetr.load("pico", model="nano", weights=weights)
    assert rapidetr.load("pico", model="rf-detr-pico", device="cpu").config.name == "pico"


@pytest.mark.parametrize("size", ["288", 288.0, (288,), (96, 96, 96)])
def test_a_size_that_is_none(size: object) -> None:
    with pytest.raises(ConfigError, match=r"^size_hw is .+; expected \(height, width\) in pixels, or one whole number for a square$"):
        rapidetr.load("pico", size_hw=size)  # type: ignore[arg-type]
