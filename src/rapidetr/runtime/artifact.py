"""An artifact: one folder with a model in the form of one engine, and all that is known of it. Nothing here imports torch.

best.safetensors, model.onnx, ...   the model
manifest.json                       what it is, how it was made, size and sha256 of every other file
lock.json                           the machine and installation that made it
report.json, verdict.json           what was measured of it, and what the gate said, where that is known
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rapidetr.core.config import ModelConfig, variant
from rapidetr.core.errors import CheckpointError, CheckpointMissing, ConfigError, HashMismatch
from rapidetr.core.labels import LabelSpace
from rapidetr.core.preprocessing import Preprocessing
from rapidetr.core.reports import Strict
from rapidetr.runtime.environment import PACKAGES, describe_environment
from rapidetr.runtime.host import Sources, attempt
from rapidetr.runtime.lock import NAME as LOCK
from rapidetr.runtime.lock import Describe, matters, sha256_of, verify_lock, write_lock
from rapidetr.runtime.places import MANIFEST, PLAIN, POINTER, SHELF

if TYPE_CHECKING:
    from rapidetr.runtime.detector import Detector

SCHEMA = "rapidetr.artifact/1"
REPORT, VERDICT = "report.json", "verdict.json"

# engine of a manifest -> "module:function", imported when an artifact asks for it. The function takes (Artifact, device,
# threads or None) and gives (Engine, Facts or Checkpoint).
LOADERS = {
    "torch": "rapidetr.runtime.load:open_torch",
    "onnxruntime": "rapidetr.runtime.onnx_engine:open_artifact_onnx",
    "openvino": "rapidetr.runtime.openvino_engine:open_artifact_openvino",
    "torch-folded": "rapidetr.runtime.folded_engine:open_artifact_folded",
    "torch-compile": "rapidetr.runtime.folded_engine:open_artifact_folded",
}


@dataclass(frozen=True)
class Facts:
    """What a Detector must know besides its engine: a Checkpoint without weights, for processes without torch."""

    config: ModelConfig
    labels: LabelSpace
    preprocessing: Preprocessing
    license: str
    provenance: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    state: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest(Strict):
    """manifest.json. Sizes are (height, width); `config`, `labels` and `preprocessing` are records of core, as JSON."""

    files: dict[str, Any]  # name -> {"sha256", "bytes"} of every file but this one
    config: dict[str, Any]
    labels: dict[str, Any]
    preprocessing: dict[str, Any]
    engine: str  # a key of LOADERS
    versions: dict[str, Any]  # of the packages that made it and run it
    device: str  # that it was made and judged for
    precision: str
    size_hw: tuple[int, int]
    decoder_layers: int
    queries: int
    license: str  # of the weights
    source: dict[str, Any]  # "name" and "sha256" of the checkpoint it was made from
    command: str  # that made it, as typed
    parameters: dict[str, Any]  # all of them, defaults included
    created: str  # ISO 8601, UTC
    schema: str = SCHEMA

    def __post_init__(self) -> None:
        for name, seal in self.files.items():
            check_name(name)
            if not isinstance(seal, dict) or set(seal) != {"sha256", "bytes"}:
                raise ConfigError(f"{name} is described by {seal!r:.80}; expected its sha256 and bytes")
        if len(self.size_hw) != 2 or not all(isinstance(side, int) for side in self.size_hw):
            raise ConfigError(f"size_hw is {self.size_hw}; expected (height, width)")
        self.facts()

    @classmethod
    def from_dict(cls, record: Any) -> Self:
        """Inverse of `to_dict`; ConfigError for another schema, and for unknown, missing and mistyped fields."""
        if isinstance(record, dict) and record.get("schema") != SCHEMA:
            raise ConfigError(f"schema is {record.get('schema')!r}; this release reads {SCHEMA!r}")
        return super().from_dict(record)

    @classmethod
    def of(
        cls, detector: Detector, *, source: str | Path, command: str | None = None, parameters: Mapping[str, Any], created: str = ""
    ) -> Self:
        """The manifest of `detector` as it runs, made from the checkpoint file `source`; `write_artifact` adds the files."""
        engine, config = detector.engine, detector.config
        layers, queries = getattr(engine, "decoder_layers", None), getattr(engine, "queries", None)  # None: all that it has
        found = {name: attempt(partial(Sources().version, name)) for name in ("rapidetr", *PACKAGES)}
        return cls(
            files={},
            config=config.to_dict(),
            labels=detector.labels.to_dict(),
            preprocessing=detector.preprocessing.to_dict(),
            engine=engine.name,
            versions={name: version for name, version in found.items() if version},
            device=engine.device,
            precision=engine.precision,
            size_hw=detector.size_hw,
            decoder_layers=layers or config.decoder_layers,
            queries=queries or config.queries,
            license=detector.license,
            source={"name": Path(source).name, "sha256": sha256_of(Path(source))},
            command=shlex.join(sys.argv) if command is None else command,
            parameters=dict(parameters),
            created=created or datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def facts(self) -> Facts:
        config, labels = ModelConfig.from_dict(self.config), LabelSpace.from_dict(self.labels)
        return Facts(config, labels, Preprocessing.from_dict(self.preprocessing), self.license, {"source": self.source.get("name")})

    def __str__(self) -> str:
        size = f"{self.size_hw[0]}x{self.size_hw[1]}"
        graph = (
            f"{self.config['name']} {size}, {self.decoder_layers} decoder layer{'s' * (self.decoder_layers > 1)}, {self.queries} queries"
        )
        return f"{graph}, {self.engine} {self.precision}"


@dataclass(frozen=True)
class Artifact:
    """A folder whose files were found to be those of its manifest."""

    path: Path
    manifest: Manifest

    @property
    def files(self) -> dict[str, Path]:
        return {name: self.path / name for name in self.manifest.files}


def check_name(name: Any) -> None:
    if not isinstance(name, str) or not PLAIN.fullmatch(name) or name == MANIFEST:
        raise ConfigError(f"file name {name!r}; expected a plain name inside the folder, and not {MANIFEST}")


def write_artifact(
    folder: str | Path, files: Mapping[str, str | Path | bytes], manifest: Manifest, *, describe: Describe = describe_environment
) -> Artifact:
    """A new folder with `files` (name -> a file to copy, or bytes), their hashes and a lock; whole or not there."""
    folder = Path(folder)
    if folder.exists():
        raise ConfigError(f"{folder}: is there already; expected the name of a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a process that died
    part.mkdir()
    try:
        for name, content in files.items():
            check_name(name)
            (part / name).write_bytes(content) if isinstance(content, bytes) else shutil.copyfile(content, part / name)
        if LOCK not in files:
            write_lock(part / LOCK, device=manifest.device, describe=describe)
        sealed = {path.name: {"sha256": sha256_of(path), "bytes": path.stat().st_size} for path in sorted(part.iterdir())}
        manifest = replace(manifest, files=sealed)
        (part / MANIFEST).write_text(json.dumps(manifest.to_dict(), indent=1) + "\n", encoding="utf-8")
        for path in (*part.iterdir(), part):
            sync(path)
        os.rename(part, folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Artifact(folder, manifest)


def sync(path: Path) -> None:
    """Have the system put a file, or the names in a folder, on its disk."""
    if path.is_dir() and os.name == "nt":
        return  # folders cannot be opened there
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def open_artifact(path: str | Path) -> Artifact:
    """The artifact in a folder, every file verified. CheckpointMissing where there is none, HashMismatch naming what differs."""
    path = Path(path)
    try:
        text = (path / MANIFEST).read_bytes()
        manifest = Manifest.from_dict(json.loads(text))
    except FileNotFoundError:
        raise CheckpointMissing(f"{path}: has no {MANIFEST}; expected the folder of an artifact") from None
    except (OSError, ValueError, RecursionError) as problem:
        raise CheckpointError(f"{path / MANIFEST}: not a manifest of an artifact ({problem}); copy or make the artifact again") from None
    if not _fits_its_name(path, text):
        raise HashMismatch(f"{path}: changed: {MANIFEST}; its name in the registry tells another one, copy or make the artifact again")
    there = {file.name for file in path.iterdir() if not file.name.startswith(".")} - {MANIFEST}
    listed = set(manifest.files)
    changed = {name for name in there & listed if not _is_sealed(path / name, manifest.files[name])}
    wrong = {"changed": changed, "missing": listed - there, "not listed": there - listed}
    if any(wrong.values()):
        told = "; ".join(f"{what}: {', '.join(sorted(names))}" for what, names in wrong.items() if names)
        raise HashMismatch(f"{path}: {told}; expected the files of its {MANIFEST}, copy or make the artifact again")
    return Artifact(path, manifest)


def _fits_its_name(path: Path, text: bytes) -> bool:
    """False where an artifact of a registry has another manifest than the one whose hash its name ends with."""
    home = path.absolute()
    digits = re.search(r"-([0-9a-f]{8})$", home.name)
    if digits is None or home.parent.name != SHELF or not (home.parents[1] / POINTER).is_file():
        return True
    return hashlib.sha256(text).hexdigest()[:8] == digits[1]


def _is_sealed(path: Path, seal: dict[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == seal["bytes"] and sha256_of(path) == seal["sha256"]


def load_artifact(
    path: str | Path,
    *,
    device: str = "auto",
    threads: int | None = None,
    accept_license: str | None = None,
    strict_lock: bool | str | Path = False,
    asked: Mapping[str, Any] | None = None,
    describe: Describe = describe_environment,
) -> Detector:
    """The Detector of an artifact, on the device it was made for unless told. `asked`: see `check_asked`.

    Drift from the lock is a note, or with `strict_lock` a ConfigError; what only other engines use does not count.
    """
    from rapidetr.checkpoints.licenses import require_license
    from rapidetr.runtime.detector import Detector

    artifact = open_artifact(path)
    manifest = artifact.manifest
    require_license(str(path), manifest.license, accept_license)
    check_asked(artifact, asked or {})
    engine, facts = loader_of(artifact)(artifact, manifest.device if device == "auto" else device, threads)
    own = isinstance(strict_lock, bool)  # its author may name any file in it; what it is made of has seals already
    lock = artifact.path / LOCK if isinstance(strict_lock, bool) else Path(strict_lock)
    found = verify_lock(lock, device=engine.device, artifact=False if own else None, dataset=False, describe=describe)
    drifts = [str(drift) for drift in found if matters(drift, manifest.engine)]
    told = f"{lock}: drifted since it was made: {', '.join(drifts)}"
    if drifts and strict_lock:
        raise ConfigError(f"{told}; restore these, judge the artifact again here, or load it without strict_lock")
    return Detector(engine, replace(facts, notes=(*facts.notes, told)) if drifts else facts)


def check_asked(artifact: Artifact, asked: Mapping[str, Any]) -> None:
    """ConfigError where a value that is not None is not the stored one: the verdict on an artifact holds for these alone."""
    m = artifact.manifest
    stored = {"model": m.config["name"], "dtype": m.precision, "size_hw": m.size_hw}
    stored |= {"decoder_layers": m.decoder_layers, "queries": m.queries}
    for name, value in asked.items():
        if value is not None and value != stored[name] and _as_stored(name, value) != stored[name]:
            raise ConfigError(f"{artifact.path}: {name} is {value}, but stored is {m}; leave it out, or make another artifact")


def _as_stored(name: str, value: Any) -> Any:
    """An argument of `rapidetr.load` in the words of a manifest."""
    if name == "size_hw":
        return (value, value) if isinstance(value, int) else tuple(value)
    if name == "model":
        return variant(value).name
    return str(value).removeprefix("torch.") if name == "dtype" else value


def loader_of(artifact: Artifact) -> Callable[[Artifact, str, int | None], tuple[Any, Any]]:
    engine = artifact.manifest.engine
    if engine not in LOADERS:
        raise CheckpointError(f"{artifact.path}: is for the engine {engine!r}; this release runs {', '.join(LOADERS)}")
    module, _, name = LOADERS[engine].partition(":")
    function: Callable[[Artifact, str, int | None], tuple[Any, Any]] = getattr(import_module(module), name)
    return function
