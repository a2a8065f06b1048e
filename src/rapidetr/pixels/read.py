"""Bytes of a picture from a path or an address, bounded in size and time."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rapidetr.core.errors import ImageError, ImageMissing


@dataclass(frozen=True)
class ImageLimits:
    """What one picture may cost. Raise them for pictures that you trust."""

    max_pixels: int = 179_000_000  # width x height as the header says it, checked before decoding
    max_bytes: int = 256 * 2**20  # of a file or a download
    timeout_s: float = 20.0  # for a whole download, not for each read


@dataclass(frozen=True)
class Encoded:
    """The bytes of an image file; `source` is its path or address, where there is one."""

    data: bytes
    source: str | None = None

    @property
    def name(self) -> str:
        return self.source or "image bytes"


def read(source: Any, limits: ImageLimits = ImageLimits()) -> Any:
    """Encoded for a path, an http(s) address or bytes; anything else as it is, for `decode`. ImageError, ImageMissing."""
    if isinstance(source, bytes | bytearray | memoryview):
        return Encoded(bytes(source))
    if isinstance(source, str) and is_url(source):
        from rapidetr.pixels.web import download

        return Encoded(download(source, limits), source)
    if isinstance(source, str | os.PathLike):
        path = os.fsdecode(source)
        return Encoded(read_file(path, limits.max_bytes), path)
    return source


def one_line(problem: object) -> str:
    """What an exception of somebody else says, without line breaks; its type where it says nothing."""
    return " ".join(str(problem).split()) or type(problem).__name__


def is_url(text: str) -> bool:
    return re.match(r"https?://", text, re.IGNORECASE) is not None


def read_file(path: str, max_bytes: int) -> bytes:
    """All bytes of a regular file of at most `max_bytes`."""
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{path} is a folder; expected a picture; name a file in it")
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{path} is not a regular file; save the picture to one first")
        if status.st_size > max_bytes:
            raise ImageError(
                f"{path} has {status.st_size} bytes, more than ImageLimits.max_bytes={max_bytes}; raise the limit if you trust it"
            )
        return Path(path).read_bytes()
    except ImageError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise ImageMissing(f"{path} is not there; check the path") from None
    except (OSError, ValueError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) and problem.strerror else problem
        raise ImageError(f"{path!r} cannot be read: {reason}; check its name and permissions") from None
