"""What exporters for other programs write: one folder, whole or not there, and a record of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rapidetr.core.errors import ConfigError
from rapidetr.core.labels import LabelSpace
from rapidetr.deployment.export_onnx import Exported
from rapidetr.runtime.artifact import sync


@dataclass(frozen=True)
class Package:
    """A folder that was written."""

    path: str
    format: str
    files: dict[str, int]  # bytes by name inside the folder
    graph: Exported | None = None  # how far the ONNX file in it is from its source; None where there is none
    notes: tuple[str, ...] = ()  # what the other program does differently, and what was not proven
    shift: dict[str, float] | None = None  # of outputs, where a program takes another epsilon than the stored one

    @property
    def close(self) -> bool:
        return self.graph is None or self.graph.close

    def to_dict(self) -> dict[str, Any]:
        graph = None if self.graph is None else self.graph.to_dict()
        return {**asdict(self), "graph": graph, "notes": list(self.notes), "close": self.close}

    def __str__(self) -> str:
        told = f"{self.path}: {', '.join(self.files)}; {sum(self.files.values()) / 1e6:.1f} MB"
        return "\n".join([told, *([] if self.graph is None else [str(self.graph)]), *(f"note: {note}" for note in self.notes)])


Fill = Callable[[Path], tuple[Exported | None, tuple[str, ...]]]


def write_package(folder: str | Path, format: str, fill: Fill, *, force: bool = False) -> Package:
    """The folder that `fill(empty folder)` fills; a crash leaves the old one or none.

    ConfigError where something is there already, unless `force` replaces it.
    """
    folder = Path(folder)
    with put_in_place(folder, force=force) as part:
        part.mkdir()
        graph, notes = fill(part)
        files = sorted(path for path in part.rglob("*") if path.is_file())
        for path in (*files, *(p for p in part.rglob("*") if p.is_dir()), part):
            sync(path)
    sizes = {path.relative_to(part).as_posix(): (folder / path.relative_to(part)).stat().st_size for path in files}
    placed = None if graph is None else replace(graph, path=str(folder / Path(graph.path).relative_to(part)))
    return Package(str(folder), format, sizes, placed, notes)


@contextmanager
def put_in_place(folder: Path, *, force: bool) -> Iterator[Path]:
    """A name beside `folder` to make a folder under, which becomes `folder` at the end; after an error all is as it was.

    ConfigError where something is there already, unless `force` replaces it, and for what is no folder.
    """
    if not force:
        refuse_existing(folder)
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ConfigError(f"{folder}: is no folder; expected one to replace, or the name of a new one")
    folder.parent.mkdir(parents=True, exist_ok=True)
    part, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{end}") for end in ("part", "old"))
    try:
        yield part
        if folder.exists():
            os.rename(folder, old)
        os.rename(part, folder)
    except BaseException:
        if old.exists() and not folder.exists():
            os.rename(old, folder)
        raise
    finally:
        for path in (part, old):
            shutil.rmtree(path, ignore_errors=True)


def refuse_existing(path: Path) -> None:
    if path.exists():
        raise ConfigError(f"{path}: exists already; choose another --out, or replace it with --force")


def row_names(labels: LabelSpace) -> tuple[list[str], str | None]:
    """A name for each row of the class head up to the last that has one, and the name that stands in gaps, None without gaps.

    Each fits on one line: white space inside is one blank. ConfigError for a name of nothing else.
    """
    names = [" ".join(name.split()) for name in labels.names]
    if "" in names:
        raise ConfigError(f"class {names.index('')} has no name; expected one, since other programs read one a line")
    gap = "background"
    while gap in names:
        gap += "_"
    lines = [gap if index < 0 else names[index] for index in labels.class_of_row[: max(labels.rows, default=-1) + 1]]
    return lines, gap if gap in lines else None
