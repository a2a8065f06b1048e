"""Thousands of damaged pictures: each gives a picture or an ImageError, within an amount of work."""

from __future__ import annotations

import io
import sys
from types import FrameType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rapidetr.core.errors import ImageError
from rapidetr.pixels.decode import ImageLimits, load_picture

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "APNG", "MPO", "TIFF-LZW", "PNG-P")
LIMITS = ImageLimits(max_pixels=1_000_000)
MOST_CALLS = 300_000  # of Python functions; an undamaged file takes about 1,000


class TooMuchWork(BaseException):
    """Not an Exception, so that nothing on the way can swallow it."""


class WorkMeter:
    """Counts calls while it is active: the same number on a fast and on a slow machine."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        self.calls += event in ("call", "c_call")
        if self.calls > MOST_CALLS:
            sys.setprofile(None)
            raise TooMuchWork

    def __enter__(self) -> WorkMeter:
        sys.setprofile(self)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)


def sound_files() -> list[bytes]:
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a picture"
    files = []
    for name in FORMATS:
        format, image = name.partition("-")[0], rgb.quantize(64) if name in ("GIF", "PNG-P") else rgb
        options: dict[str, Any] = {"exif": exif} if format in ("PNG", "JPEG", "WEBP", "TIFF", "MPO") else {}
        if name in ("APNG", "GIF", "MPO"):
            options |= {"save_all": True, "append_images": [image.rotate(90), image.rotate(180)]}
        if name == "PNG-P":
            options |= {"transparency": bytes(range(64))}
        if name == "TIFF-LZW":
            options |= {"compression": "tiff_lzw"}
        file = io.BytesIO()
        image.save(file, "PNG" if name == "APNG" else format, **options)
        files.append(file.getvalue())
    return files


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Bytes flipped (often near the start, where the header is), a stretch cut, doubled, zeroed, or the end cut off."""
    bad = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        reach = len(bad) if rng.random() < 0.5 else min(len(bad), 120)
        at, length = int(rng.integers(0, max(reach, 1))), int(rng.integers(1, 40))
        match rng.integers(0, 6):
            case 0 | 1:
                bad[at : at + 1] = bytes([rng.integers(0, 256)])
            case 2:
                bad[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\x80\0"])
            case 3:
                del bad[at : at + length]
            case 4:
                bad[at:at] = bad[at : at + length]
            case _:
                if rng.random() < 0.5:
                    del bad[int(len(bad) * rng.random()) :]
    return bytes(bad)


def survivors(count: int, seed: int) -> tuple[int, int]:
    """(pictures, errors that come from inside a picture, past its header) of `count` mutated files."""
    rng, files = np.random.default_rng(seed), sound_files()
    pictures = inside = 0
    for i in range(count):
        data = mutate(files[i % len(files)], rng)
        told = ""
        try:
            with WorkMeter():
                shape = load_picture(data, LIMITS).pixels.shape
        except ImageError as problem:
            told = str(problem)
        assert len(told) < 400
        assert "\n" not in told
        if not told:
            assert shape[2] == 3
            assert shape[0] * shape[1] <= LIMITS.max_pixels
        pictures, inside = pictures + (not told), inside + ("damaged" in told)
    return pictures, inside


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow about metadata; it goes on, and so deeper
def test_mutated_pictures() -> None:
    pictures, inside = survivors(204, seed=1)
    assert pictures + inside > 68  # at least a third gets past the first bytes
    assert min(pictures, inside) > 20


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("seed", [2, 3, 4])
def test_more_mutated_pictures(seed: int) -> None:
    pictures, inside = survivors(504, seed)
    assert pictures + inside > 168
    assert min(pictures, inside) > 50
