"""Finding and reading files of a dataset that somebody else packed: bounded, and never outside its folder.

Only a data.yaml may name folders elsewhere, as users of YOLO do; the lists in such folders may not.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from PIL import Image

from rapidetr.core.errors import DatasetError
from rapidetr.pixels.find import SUFFIXES

JSON_BYTES, TEXT_BYTES = 1 << 30, 16 << 20  # the largest files that are read: COCO 2017 train is 0.45 GiB
SPLIT_WORDS = {
    "train": "train", "training": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test", "testing": "test",
}  # fmt: skip
EXIF_ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)


@dataclass(frozen=True)
class Source:
    """Where one split lies. `listing` is the VOC file that names its pictures; `folders` are searched in order; `missing` are
    those that a data.yaml names and that are not there.
    """

    split: str
    format: str
    root: Path
    annotations: Path
    folders: tuple[Path, ...]
    listing: Path | None = None
    missing: tuple[str, ...] = ()

    def name(self, path: Path | str) -> str:
        """`path` as messages show it: relative to the root where it lies inside."""
        return Path(os.path.relpath(path, self.root)).as_posix() if is_inside(path, self.root) else str(path)


def split_name(word: str) -> str | None:
    """train, valid or test, where a file or folder name says it: val2017, instances_train, Validation."""
    found = [SPLIT_WORDS[w] for w in re.findall(r"[a-z]+", word.lower()) if w in SPLIT_WORDS]
    return found[0] if found else None


def read_text(path: Path, limit: int = TEXT_BYTES) -> str:
    """Text of a file of at most `limit` bytes."""
    try:
        size = path.stat().st_size
        if size > limit:
            raise DatasetError(f"{path}: {size} bytes, expected at most {limit}; this is no annotation file")
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise DatasetError(f"{path}: byte {problem.start} is not UTF-8; save the file as UTF-8") from None
    except OSError as problem:
        raise DatasetError(f"{path}: cannot be read ({problem.strerror}); expected an annotation file") from None


def read_json(path: Path) -> Any:
    text = read_text(path, JSON_BYTES)
    try:
        return json.loads(text)
    except json.JSONDecodeError as problem:
        raise DatasetError(f"{path}: broken JSON at line {problem.lineno} column {problem.colno}: {problem.msg}; export it again") from None
    except (RecursionError, ValueError) as problem:
        raise DatasetError(f"{path}: JSON that no annotation tool writes ({type(problem).__name__}); export it again") from None


def list_images(folder: Path) -> list[Path]:
    """Pictures in a folder and below, sorted by name; hidden ones are no pictures but what other programs leave."""
    found = (p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not is_hidden(p, folder))
    return sorted(p for p in found if p.is_file())


def is_hidden(path: Path, folder: Path) -> bool:
    """._a.jpg of macOS, .ipynb_checkpoints/a.jpg of Jupyter."""
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def list_folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []


def read_size_hw(path: str | Path) -> tuple[int, int]:
    """(height, width) of the upright picture, from its header; DatasetError when there is none."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            # Pillow decodes a whole PNG to look for metadata behind the pixels, where hardly anybody writes them
            exif = {} if image.format == "PNG" and "exif" not in image.info else image.getexif()
            return (width, height) if exif.get(EXIF_ORIENTATION) in TURNED else (height, width)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as problem:
        raise DatasetError(f"{path}: no picture size can be read ({type(problem).__name__}); replace the file") from None


def is_inside(path: Path | str, root: Path) -> bool:
    """By name alone, without following links: a link in the user's own folder may lead to another disk."""
    inner, outer = os.path.abspath(path), os.path.abspath(root)
    return inner == outer or inner.startswith(outer.rstrip(os.sep) + os.sep)


def locate(name: object, source: Source, folders: Sequence[Path] = ()) -> str | None:
    """Path of the picture that an annotation file calls `name`; None when the name would leave the dataset folder.

    Absolute names of another machine, backslashes and needless folders are healed by looking for ever fewer of the last parts; a picture
    that is nowhere gets the path at which it was expected first. Names with `..` must lead to a file inside.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        return None
    folders = folders or source.folders
    foreign = name.startswith("/") or PureWindowsPath(name).is_absolute()
    plain = name.replace("\\", "/")
    base = plain.rsplit("/", 1)[-1]
    tries = [] if foreign else [os.path.normpath(f / plain) for f in folders]
    tries = [t for t in tries if is_inside(t, source.root)]
    if base in ("", ".", "..") or not (foreign or tries):
        return None
    if ".." in plain.split("/"):
        return next((t for t in tries if os.path.isfile(t)), None)
    if foreign and is_inside(name, source.root):
        tries.append(os.path.normpath(name))
    expected = tries[0] if tries else os.path.join(folders[0], base)
    parts = plain.split("/") if foreign else ["", base]
    tries += [os.path.join(f, *parts[i:]) for i in range(1, len(parts)) for f in folders]
    return next((t for t in tries if os.path.isfile(t)), expected)
