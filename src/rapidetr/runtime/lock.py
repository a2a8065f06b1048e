"""A machine and an installation, written down; later, what has drifted since and what that can do to speed or accuracy."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from rapidetr.core.config import variant
from rapidetr.core.errors import ConfigError
from rapidetr.runtime.drift import Drift, compare
from rapidetr.runtime.environment import VERSION, describe_environment
from rapidetr.runtime.places import WEIGHTS, find_artifact, only_a_name

NAME = "lock.json"

# what runs an engine -> items of a lock that are its own; other engines do not use them
RUNS = {
    "torch": ("packages.torch", "torch."),
    "onnxruntime": ("packages.onnxruntime",),  # and its variants
    "openvino": ("packages.openvino",),
    "tensorrt": ("packages.tensorrt",),
}

Describe = Callable[[str], dict[str, Any]]


def write_lock(
    path: str | Path = NAME,
    *,
    artifact: str | Path | None = None,
    dataset: str | Path | None = None,
    device: str = "cpu",
    describe: Describe = describe_environment,
) -> dict[str, Any]:
    """The record written to `path`: the environment, and sha256 of an artifact (see `weights_file`) and of a dataset (file or folder).

    Paths are kept relative to the lock where they lie below it, so that a folder can move with its lock.
    """
    path = Path(path)
    base = Path(os.path.abspath(path.parent))
    record = {
        "lock": VERSION,
        "environment": describe(device),
        "artifact": None if artifact is None else _sealed(weights_file(artifact), base),
        "dataset": None if dataset is None else _sealed(Path(dataset), base),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def read_lock(path: str | Path) -> dict[str, Any]:
    """The record in a file; ConfigError where there is none that this version reads."""
    path = Path(path)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; expected a lock, write one with: rapidetr lock write --out {path}") from None
    except (OSError, ValueError, RecursionError) as problem:
        raise ConfigError(f"{path}: cannot be read as a lock ({problem}); write it anew with: rapidetr lock write") from None
    if not isinstance(record, dict) or record.get("lock") != VERSION or not isinstance(record.get("environment"), dict):
        found = f"version {record['lock']!r}" if isinstance(record, dict) and "lock" in record else "something else"
        raise ConfigError(f"{path}: is {found}; expected a lock of version {VERSION}, write one with: rapidetr lock write")
    return record


def verify_lock(
    path: str | Path = NAME,
    *,
    device: str | None = None,
    artifact: str | Path | Literal[False] | None = None,
    dataset: str | Path | Literal[False] | None = None,
    describe: Describe = describe_environment,
) -> list[Drift]:
    """What differs between the lock and now; empty if nothing does.

    `device`, `artifact` and `dataset` default to the locked ones, and a lock without artifact or dataset asks for none;
    False saves reading them. Settings of torch are compared if both sides have them.
    """
    path = Path(path)
    record = read_lock(path)
    locked = record["environment"]
    present = describe(device or str(locked.get("device", "cpu")))
    for part, given in (("artifact", artifact and weights_file(artifact)), ("dataset", dataset)):
        seal = record.get(part)
        if isinstance(seal, dict) and given is not False:
            place = Path(given) if given else path.parent / str(seal.get("path"))
            locked[part], present[part] = {"sha256": seal.get("sha256")}, {"sha256": sha256_of(place) if place.exists() else "missing"}
    return compare(locked, present)


def matters(drift: Drift, engine: str) -> bool:
    """Whether a drift can change the speed or the answers of what runs on `engine`, named as in a manifest."""
    others = tuple(item for runner, items in RUNS.items() if runner != engine.partition("-")[0] for item in items)
    return drift.serious and not drift.item.startswith(others)


def require_lock(
    lock: bool | str | Path, source: str | Path, device: str, describe: Describe = describe_environment, *, engine: str = "torch"
) -> None:
    """Raise ConfigError if something drifted from a lock (a path, or with True lock.json beside `source`) that `engine` heeds."""
    there = Path(source)
    if lock is True and not there.exists():
        raise ConfigError(
            f"strict_lock=True looks for {NAME} beside the weights, but {source} is a name; give it a path: strict_lock='{NAME}'"
        )
    path = Path(lock) if not isinstance(lock, bool) else (there if there.is_dir() else there.parent) / NAME
    drifts = verify_lock(path, device=device, artifact=there if there.exists() else None, dataset=False, describe=describe)
    serious = [str(drift) for drift in drifts if matters(drift, engine)]
    if serious:
        items = "item has" if len(serious) == 1 else "items have"
        raise ConfigError(
            f"{path}: {len(serious)} {items} drifted: {', '.join(serious)}; see what it means with: rapidetr lock verify {path}, "
            "restore it, or lock the present state with: rapidetr lock write"
        )


def weights_file(source: str | Path) -> Path:
    """The file that `load` reads for a path, a run folder or a model name, fetched if need be; ConfigError for anything else.

    Of an artifact, or of that which a registry names, its best.safetensors, else its folder.
    """
    artifact = find_artifact(source)
    path = artifact or Path(source)
    if artifact or (path.exists() and not only_a_name(source)):
        return path / WEIGHTS if (path / WEIGHTS).exists() else path
    from rapidetr.checkpoints.download import fetch
    from rapidetr.checkpoints.weights import bundled_file, entry_for

    entry = entry_for(variant(str(source)).name)
    if entry.bundled:
        with bundled_file(entry) as file:
            return file
    return fetch(entry)


def sha256_of(path: Path) -> str:
    """Of a file; of a folder over names and bytes of all files in it, hidden ones and locks apart."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for file_path in sorted(_files(path)):
        digest.update(f"{file_path.relative_to(path).as_posix()}\0{sha256_of(file_path)}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    for entry in folder.iterdir():
        if entry.name.startswith(".") or entry.name == NAME:
            continue
        if entry.is_dir():
            yield from _files(entry)
        else:
            yield entry


def _sealed(path: Path, base: Path) -> dict[str, Any]:
    if not path.exists():
        raise ConfigError(f"{path}: no such file or folder; expected what is to be locked")
    full = Path(os.path.abspath(path))  # not resolved: caches keep files behind links
    return {"path": full.relative_to(base).as_posix() if full.is_relative_to(base) else str(full), "sha256": sha256_of(full)}
