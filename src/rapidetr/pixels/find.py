"""The pictures that the arguments of a command stand for."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence

from rapidetr.core.errors import ImageMissing
from rapidetr.pixels.read import is_url

SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".mpo",
    ".png",
    ".apng",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".pbm",
    ".avif",
)


def find_images(arguments: Sequence[str]) -> list[str]:
    """Paths and addresses that arguments stand for, in their order and each once.

    A folder gives its pictures and then those of its subfolders, sorted, hidden ones left out; a pattern ('more/*.png',
    'all/**/*.jpg') the pictures that match; a file and an address stand for themselves. ImageMissing where there is none.
    """
    found: dict[str, str] = {}
    for argument in arguments:
        for image in [argument] if is_url(argument) else expand(argument):
            found.setdefault(image if is_url(image) else os.path.normcase(os.path.abspath(image)), image)
    return list(found.values())


def expand(argument: str) -> list[str]:
    """The pictures of one argument that is not an address."""
    if os.path.isdir(argument):
        images = list(walk(argument))
        if not images:
            raise ImageMissing(f"{argument} holds no pictures; expected files that end in one of {' '.join(SUFFIXES)}")
        return images
    if os.path.lexists(argument):  # also where its name looks like a pattern
        return [argument]
    if glob.has_magic(argument):
        images = sorted(f for f in glob.glob(argument, recursive=True) if f.lower().endswith(SUFFIXES) and os.path.isfile(f))
        if not images:
            raise ImageMissing(f"{argument} matches no pictures; expected files that end in one of {' '.join(SUFFIXES)}")
        return images
    raise ImageMissing(f"{argument or repr(argument)} is not there; check the path")


def walk(folder: str) -> Iterator[str]:
    """Pictures of a folder, sorted, then of its subfolders."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        yield from (os.path.join(place, f) for f in sorted(files) if f.lower().endswith(SUFFIXES) and not f.startswith("."))
