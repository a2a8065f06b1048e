"""What an .onnx file says of itself, read without onnx and without building anything from it: our header, and the files it names.

The format is protocol buffers; the numbers below are fields of onnx.proto (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from rapidetr.core.errors import CheckpointError, CheckpointMissing, UnsafeFile

KEY, HEADER_VERSION = "rapidetr", 1
_HEADER_LIMIT = 8 << 20  # bytes of JSON; a header for 10,000 classes has under one
# message -> field -> message: every way from a model to a tensor
_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external"},
}
_METADATA = 14  # of a model


def read_header(path: Path) -> dict[str, Any] | None:
    """The record that our export stored, None in a file of another program.

    CheckpointMissing, CheckpointError for what is no ONNX file or a damaged header, UnsafeFile for a file that names weights
    outside its own folder.
    """
    if not path.is_file():
        raise CheckpointMissing(f"{path}: no such file; expected an .onnx file")
    try:
        with path.open("rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        outside = [name for name in _external(data, "model") if not _is_beside(path, name)]
        metadata = dict(_entry(value) for number, value in _fields(data) if number == _METADATA)
    except (ValueError, IndexError, RecursionError) as problem:
        raise CheckpointError(f"{path}: not a whole ONNX file ({problem}); copy or export it again") from None
    if outside:
        raise UnsafeFile(f"{path}: wants weights from {outside[0][:200]!r}; expected files in its own folder, it was not loaded")
    return _parsed(path, metadata[KEY]) if KEY in metadata else None


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        record = json.loads(text) if len(text) <= _HEADER_LIMIT else None
        if not isinstance(record, dict) or record.get("format_version") != HEADER_VERSION:
            raise ValueError(f"this release reads JSON objects of version {HEADER_VERSION}, up to {_HEADER_LIMIT} characters")
    except (ValueError, RecursionError) as problem:
        raise CheckpointError(f"{path}: damaged header ({problem}); export it again") from None
    return record


def _is_beside(path: Path, name: str) -> bool:
    parts = {*PurePosixPath(name).parts, *PureWindowsPath(name).parts}
    absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor
    return not absolute and ".." not in parts and (path.parent / name).is_file()


def _external(message: memoryview, kind: str) -> Iterator[str]:
    """Every location that a tensor inside `message` names."""
    for number, value in _fields(message):
        inner = _INSIDE[kind].get(number)
        if inner == "external":
            key, location = _entry(value)
            if key == "location":
                yield location
        elif inner:
            yield from _external(value, inner)


def _entry(message: memoryview) -> tuple[str, str]:
    found = {number: str(value, "utf-8") for number, value in _fields(message)}
    return found.get(1, ""), found.get(2, "")


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(number, bytes) of the fields of a message that have a length; the others are passed over."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        if key & 7 == 2:
            size, place = _varint(message, place)
            if size > len(message) - place:
                raise ValueError("it ends early")
            yield key >> 3, message[place : place + size]
        elif key & 7 == 0:
            size, place = 0, _varint(message, place)[1]
        elif key & 7 in (1, 5):
            size = 8 if key & 7 == 1 else 4
        else:
            raise ValueError(f"field of unknown kind {key & 7}")
        place += size


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = message[place]
        value, shift, place = value | (byte & 127) << shift, shift + 7, place + 1
        if byte < 128:
            return value, place
    raise ValueError("a number is too long")
