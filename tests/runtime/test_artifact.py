"""Artifacts: what is written is what is read, nothing else is; and detectors from them."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cases
import numpy as np
import pytest

import rapidetr
from rapidetr.checkpoints.file import Checkpoint, save_checkpoint
from rapidetr.core.errors import CheckpointError, CheckpointMissing, ConfigError, HashMismatch, LicenseRefused
from rapidetr.core.labels import LabelSpace
from rapidetr.core.preprocessing import Preprocessing
from rapidetr.runtime.artifact import LOADERS, Artifact, Manifest, load_artifact, open_artifact, write_artifact
from rapidetr.runtime.places import find_artifact

PICTURE = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)


def machine(device: str = "cpu") -> dict[str, object]:
    """An environment that is the same on every computer."""
    return {"version": 1, "device": device, "python": {"version": "3.11"}, "packages": {"numpy": "2.0", "safetensors": "1"}}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = cases.network("tiny_det")
    checkpoint = Checkpoint(network.state_dict(), network.config, LabelSpace.contiguous("abcdef"), Preprocessing(), "Apache-2.0")
    return save_checkpoint(checkpoint, tmp_path_factory.mktemp("source") / "tiny.safetensors")


def make(tiny: Path, folder: Path, **options: object) -> Artifact:
    detector = rapidetr.load(tiny, device="cpu", **options)
    manifest = Manifest.of(detector, source=tiny, command="made by a test", parameters={"dtype": "bfloat16"}, created="2026-01-02")
    return write_artifact(folder, {"best.safetensors": tiny, "report.json": b"{}"}, manifest, describe=machine)


def test_an_artifact_is_read_as_it_was_written(tiny: Path, tmp_path: Path) -> None:
    made = make(tiny, tmp_path / "a", dtype="bfloat16", size_hw=(48, 96), decoder_layers=1, queries=9)
    read = open_artifact(tmp_path / "a")
    assert read == made
    assert sorted(read.files) == ["best.safetensors", "lock.json", "report.json"]
    assert read.manifest == Manifest.from_dict(json.loads(json.dumps(read.manifest.to_dict())))
    m = read.manifest
    assert (m.engine, m.precision, m.size_hw, m.decoder_layers, m.queries) == ("torch", "bfloat16", (48, 96), 1, 9)
    assert m.files["report.json"] == {"sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a", "bytes": 2}
    assert m.source == {"name": "tiny.safetensors", "sha256": m.files["best.safetensors"]["sha256"]}
    assert (m.command, m.parameters, m.created, m.license) == ("made by a test", {"dtype": "bfloat16"}, "2026-01-02", "Apache-2.0")
    assert {"torch", "numpy", "rapidetr"} <= set(m.versions)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


def test_a_torch_artifact_predicts_what_its_checkpoint_does(tiny: Path, tmp_path: Path) -> None:
    options = {"size_hw": (48, 96), "decoder_layers": 1, "queries": 9}
    make(tiny, tmp_path / "a", **options)
    direct = rapidetr.load(tiny, device="cpu", **options).predict(PICTURE, 0.0)[0]
    detector = load_artifact(tmp_path / "a", describe=machine)
    assert (detector.size_hw, detector.engine.name, detector.license, detector.notes) == ((48, 96), "torch", "Apache-2.0", ())
    found = detector.predict(PICTURE, 0.0)[0]
    assert len(found) == 9
    assert np.array_equal(found.scores, direct.scores)
    assert np.array_equal(found.boxes_xyxy_px, direct.boxes_xyxy_px)
    assert rapidetr.load(tmp_path / "a", size_hw=(48, 96), dtype="float32", model=detector.config.name).size_hw == (48, 96)
    assert rapidetr.load(tmp_path / "a", size_hw=[48, 96], model="rfdetr-nano").size_hw == (48, 96)


def test_whatever_differs_is_named(tiny: Path, tmp_path: Path) -> None:
    folder = make(tiny, tmp_path / "a").path
    (folder / "report.json").write_text("[]")  # as long as it was
    (folder / "lock.json").unlink()
    (folder / "more.bin").write_bytes(b"")
    (folder / ".hidden").write_bytes(b"")
    with pytest.raises(HashMismatch) as caught:
        rapidetr.load(folder)
    expected = (
        f"{folder}: changed: report.json; missing: lock.json; not listed: more.bin; expected the files of its manifest.json, copy or make "
        "the artifact again"
    )
    assert str(caught.value) == expected
    with pytest.raises(CheckpointMissing, match=r"nix: has no manifest\.json; expected the folder of an artifact"):
        open_artifact(tmp_path / "nix")


@pytest.mark.parametrize("name", ["../evil", "a/b", "/etc/passwd", "..", ".hidden", "a\\b", "c:x", "", "manifest.json", "x\n"])
def test_names_that_leave_the_folder_are_refused(tiny: Path, tmp_path: Path, name: str) -> None:
    artifact = make(tiny, tmp_path / "a")
    with pytest.raises(ConfigError, match="expected a plain name inside the folder"):
        write_artifact(tmp_path / "b", {name: b"x"}, artifact.manifest, describe=machine)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]
    record = artifact.manifest.to_dict()
    record["files"][name] = record["files"].pop("report.json")
    (artifact.path / "manifest.json").write_text(json.dumps(record))
    with pytest.raises(
        CheckpointError, match=r"manifest\.json: not a manifest of an artifact \(file name .* copy or make the artifact again"
    ):
        open_artifact(artifact.path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "rapidetr.artifact/2"}, "schema is 'rapidetr.artifact/2'; this release reads 'rapidetr.artifact/1'"),
        ({"surprise": 1}, r"unknown \['surprise'\]"),
        ({"queries": "9"}, "queries is '9'; expected int"),
        ({"size_hw": [48]}, r"size_hw is \(48,\); expected \(height, width\)"),
        ({"config": {}}, "model configuration: missing"),
        ({"labels": {}}, "labels: expected names"),
        ({"files": {"a": 3}}, "a is described by 3; expected its sha256 and bytes"),
    ],
)
def test_a_damaged_manifest_says_what_is_wrong(tiny: Path, tmp_path: Path, change: dict[str, object], message: str) -> None:
    artifact = make(tiny, tmp_path / "a")
    (artifact.path / "manifest.json").write_text(json.dumps({**artifact.manifest.to_dict(), **change}))
    with pytest.raises(CheckpointError, match=message):
        open_artifact(artifact.path)


def test_half_an_artifact_is_never_there(tiny: Path, tmp_path: Path) -> None:
    whole = make(tiny, tmp_path / "a")
    with pytest.raises(ConfigError, match="a: is there already; expected the name of a new folder"):
        make(tiny, tmp_path / "a")
    with pytest.raises(FileNotFoundError):
        write_artifact(tmp_path / "b", {"best.safetensors": tiny, "model.bin": tmp_path / "nix"}, whole.manifest, describe=machine)
    (tmp_path / ".c.part").mkdir()  # of a process that died
    (tmp_path / ".c.part" / "junk").write_bytes(b"")
    write_artifact(tmp_path / "c", whole.files, whole.manifest)
    assert open_artifact(tmp_path / "c").manifest == whole.manifest  # the lock came along
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "c"]


@pytest.mark.parametrize(
    "asked", [{"size_hw": (96, 48)}, {"size_hw": 96}, {"decoder_layers": 2}, {"queries": 3}, {"dtype": "float16"}, {"model": "small"}]
)
def test_stored_values_cannot_be_asked_for_differently(tiny: Path, tmp_path: Path, asked: dict[str, object]) -> None:
    folder = make(tiny, tmp_path / "a", size_hw=(48, 96), decoder_layers=1, queries=9).path
    ((name, value),) = asked.items()
    with pytest.raises(ConfigError) as caught:
        rapidetr.load(folder, **asked)
    stored = "nano 48x96, 1 decoder layer, 9 queries, torch float32"
    assert str(caught.value) == f"{folder}: {name} is {value}, but stored is {stored}; leave it out, or make another artifact"


def test_drift_is_told_and_refused_when_strict(tiny: Path, tmp_path: Path) -> None:
    folder = make(tiny, tmp_path / "a").path

    def elsewhere(device: str) -> dict[str, object]:
        return {**machine(device), "packages": {"numpy": "3.0", "safetensors": "2"}}  # the second changes nothing

    told = f"{folder / 'lock.json'}: drifted since it was made: packages.numpy (2.0 → 3.0)"
    assert load_artifact(folder, describe=elsewhere).notes == (told,)
    with pytest.raises(ConfigError) as caught:
        load_artifact(folder, describe=elsewhere, strict_lock=True)
    assert str(caught.value) == f"{told}; restore these, judge the artifact again here, or load it without strict_lock"
    assert load_artifact(folder, describe=machine, strict_lock=True).notes == ()
    with pytest.raises(ConfigError, match=r"other\.json: no such file"):
        load_artifact(folder, describe=machine, strict_lock=tmp_path / "other.json")


def test_what_a_lock_of_an_artifact_names_is_not_read(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An artifact may come from anybody, and its lock with it: it cannot have files of this machine hashed."""
    folder = make(tiny, tmp_path / "a").path
    record = json.loads((folder / "lock.json").read_text())
    seal = {"path": str(tmp_path / "secret.txt"), "sha256": "0" * 64}
    (tmp_path / "secret.txt").write_text("mine")
    forged = tmp_path / "forged.json"
    forged.write_text(json.dumps({**record, "artifact": seal, "dataset": seal}))
    monkeypatch.setattr("rapidetr.runtime.artifact.LOCK", "../forged.json")
    assert load_artifact(folder, describe=machine).notes == ()
    assert load_artifact(folder, describe=machine, strict_lock=True).notes == ()
    with pytest.raises(ConfigError, match=r"artifact\.sha256"):  # a lock that the user names is the user's
        load_artifact(folder, describe=machine, strict_lock=forged)
    forged.write_text("[" * 100_000)
    with pytest.raises(ConfigError, match="cannot be read as a lock"):
        load_artifact(folder, describe=machine)


def runners(**changed: str | None) -> Callable[[str], dict[str, object]]:
    """A machine with all engines, some of them of another version."""

    def describe(device: str) -> dict[str, object]:
        packages = {"torch": "2.13", "onnxruntime": "1.2", "openvino": "2026", "tensorrt": "10"} | changed
        return {"version": 1, "device": device, "packages": packages, "torch": packages["torch"] and {"threads": packages["torch"]}}

    return describe


@pytest.mark.parametrize(
    ("engine", "own"),
    [
        ("onnxruntime", {"packages.onnxruntime": "1.2 → 9"}),
        ("openvino", {"packages.openvino": "2026 → 9"}),
        ("torch", {"packages.torch": "2.13 → 9", "torch.threads": "2.13 → 9"}),
        ("torch-compile", {"packages.torch": "2.13 → 9", "torch.threads": "2.13 → 9"}),
    ],
)
def test_only_what_its_engine_runs_on_can_drift(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, own: dict[str, str]
) -> None:
    monkeypatch.setitem(LOADERS, engine, LOADERS["torch"])  # any network will do
    manifest = replace(Manifest.of(rapidetr.load(tiny, device="cpu"), source=tiny, parameters={}), engine=engine)
    folder = write_artifact(tmp_path / "a", {"best.safetensors": tiny}, manifest, describe=runners()).path
    name = engine.partition("-")[0]
    others = {other: None for other in ("torch", "onnxruntime", "openvino", "tensorrt") if other != name}
    assert load_artifact(folder, strict_lock=True, describe=runners(**others)).notes == ()
    with pytest.raises(ConfigError) as caught:
        load_artifact(folder, strict_lock=True, describe=runners(**{**others, name: "9"}))
    assert f"since it was made: {', '.join(f'{item} ({change})' for item, change in own.items())}; restore" in str(caught.value)


def test_the_command_can_be_typed_again(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["rapidetr", "optimize", "my model", "--why", "it's $fast"])
    assert shlex.split(Manifest.of(rapidetr.load(tiny, device="cpu"), source=tiny, parameters={}).command) == sys.argv


def test_the_licence_must_be_accepted(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAPIDETR_ACCEPT_LICENSE", raising=False)
    artifact = make(tiny, tmp_path / "a")
    write_artifact(tmp_path / "b", artifact.files, replace(artifact.manifest, license="PML-1.0"))
    with pytest.raises(LicenseRefused, match=r"accept_license='PML-1\.0'"):
        rapidetr.load(tmp_path / "b")
    assert rapidetr.load(tmp_path / "b", accept_license="PML-1.0").config.name == "nano"


def test_every_engine_of_the_table_has_its_loader() -> None:
    from rapidetr.runtime.artifact import loader_of

    for engine in LOADERS:
        manifest = type("Stub", (), {"engine": engine})()
        assert callable(loader_of(Artifact(Path("x"), manifest)))
    with pytest.raises(CheckpointError, match="x: is for the engine 'abacus'; this release runs torch"):
        loader_of(Artifact(Path("x"), type("Stub", (), {"engine": "abacus"})()))


def test_the_pointer_of_a_registry_leads_to_an_artifact(tiny: Path, tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    make(tiny, registry / "artifacts" / "one")
    with pytest.raises(CheckpointMissing, match="current: no such file; nothing was added to this registry yet"):
        rapidetr.load(registry / "current")
    assert find_artifact(registry) is None
    (registry / "current").write_text("one\n{}\n")
    assert find_artifact(registry / "current") == find_artifact(registry) == registry / "artifacts" / "one"
    assert rapidetr.load(str(registry / "current")).predict(PICTURE) is not None
    with pytest.raises(ConfigError, match=r"^size_hw is 1\.5; expected \(height, width\) in pixels"):
        rapidetr.load(registry / "current", size_hw=1.5)  # type: ignore[arg-type]
    (registry / "current").write_text("../../one\n")
    with pytest.raises(
        CheckpointError, match=r"current: names '\.\./\.\./one'; expected an artifact of artifacts/; restore it: artifact, line"
    ):
        rapidetr.load(registry / "current")
    assert find_artifact("nano") is None


@pytest.mark.slow
def test_reading_an_artifact_imports_no_torch(tiny: Path, tmp_path: Path) -> None:
    folder = make(tiny, tmp_path / "a").path
    code = "import sys; from rapidetr.runtime.artifact import open_artifact; open_artifact(sys.argv[1]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
