"""What a path means to `rapidetr.load`: an artifact, a registry, a run folder or only a model's name. Light, as every load asks."""

from __future__ import annotations

import re
from pathlib import Path

from rapidetr.core.config import VARIANTS
from rapidetr.core.errors import CheckpointError, CheckpointMissing

MANIFEST = "manifest.json"  # in the folder of every artifact
WEIGHTS = "best.safetensors"  # of a run folder: what `load` reads there; logs beside it may change
POINTER, SHELF = "current", "artifacts"  # of a registry: the file that names the artifact in use, and the folder that holds all
HISTORY = "history.jsonl"  # of a registry
RESTORE = f"restore it: artifact, line break, last line of {HISTORY}"  # a pointer that is lost or damaged
PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")  # a name that stays inside its folder on every system


def find_artifact(source: str | Path) -> Path | None:
    """The folder of the artifact that a path means: itself, or what the pointer of a registry names; None for anything else."""
    path = Path(source)
    if (path / MANIFEST).is_file():
        return path
    registry = path.parent if path.name == POINTER else path
    known = (registry / SHELF).is_dir() and (path.name == POINTER or (path / POINTER).is_file())
    return registry / SHELF / read_pointer(registry) if known else None


def read_pointer(registry: str | Path) -> str:
    """The artifact in use: the first line of the file `current`. CheckpointMissing, or CheckpointError for a damaged one."""
    path = Path(registry) / POINTER
    try:
        name = path.read_text(encoding="utf-8").partition("\n")[0]
    except FileNotFoundError:
        told = RESTORE if path.with_name(HISTORY).exists() else "nothing was added to this registry yet"
        raise CheckpointMissing(f"{path}: no such file; {told}") from None
    except (OSError, ValueError) as problem:
        raise CheckpointError(f"{path}: cannot be read ({problem})") from None
    if not PLAIN.fullmatch(name):
        raise CheckpointError(f"{path}: names {name[:80]!r}; expected an artifact of {SHELF}/; {RESTORE}")
    return name


def only_a_name(source: str | Path) -> bool:
    """Whether it is a model's name and, at most by chance, that of a folder without weights."""
    path = Path(source)
    return str(source) in VARIANTS and not path.is_file() and not (path / WEIGHTS).exists()
