"""Pictures of a data set from disk, JPEG by simplejpeg where that is installed and gives the very same pixels as Pillow."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from importlib import import_module

import numpy as np
from PIL import Image

from rapidetr.pixels.decode import ORIENTATION, decode, openers
from rapidetr.pixels.read import ImageLimits, read

LIMITS = ImageLimits()


def load_pixels(path: str) -> np.ndarray:
    """The picture as `pixels.decode` gives it, RGB [H, W, 3]; ImageError names the file that cannot be read."""
    encoded = read(path, LIMITS)
    fast = fast_decoder()
    pixels = fast(encoded.data) if fast is not None and encoded.data[:3] == b"\xff\xd8\xff" else None
    return decode(encoded, LIMITS).pixels if pixels is None else pixels


@cache
def fast_decoder() -> Callable[[bytes], np.ndarray | None] | None:
    """A decoder that returns None for what it leaves to Pillow; None when simplejpeg is missing or decodes differently."""
    try:
        decode_jpeg = import_module("simplejpeg").decode_jpeg
    except ImportError:
        return None
    if not all(np.array_equal(decode_jpeg(data), np.asarray(Image.open(io.BytesIO(data)))) for data in probes()):
        return None

    def decode_fast(data: bytes) -> np.ndarray | None:
        try:
            header = openers()["JPEG"][0](io.BytesIO(data), "")  # reads no pixels
            upright = header.getexif().get(ORIENTATION, 1) == 1
            if upright and header.mode in ("RGB", "L") and header.width * header.height <= LIMITS.max_pixels:
                return np.asarray(decode_jpeg(data))
        except Exception:  # whatever is wrong with the file, Pillow's path says it better
            pass
        return None

    return decode_fast


def probes() -> list[bytes]:
    """Small JPEGs of odd sizes with every subsampling, on which rounding and upsampling would show."""
    coarse = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    picture = Image.fromarray(coarse).resize((61, 45), Image.Resampling.BICUBIC)
    files = []
    for subsampling in (0, 1, 2):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=80, subsampling=subsampling)
        files.append(file.getvalue())
    return files
