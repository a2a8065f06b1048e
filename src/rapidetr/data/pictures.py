"""One look at a picture for the doctor: its real size, whether it can be read, and two fingerprints."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from rapidetr.core.errors import DatasetError, ImageError, ImageMissing
from rapidetr.data.files import read_size_hw
from rapidetr.pixels.decode import decode, read

THUMB = 16


@dataclass(frozen=True, eq=False)
class Look:
    """size_hw of the upright picture · digest of the file's bytes · thumb float32 [256], grey 16 x 16 · error: why not."""

    size_hw: tuple[int, int] | None = None
    digest: bytes | None = None
    thumb: np.ndarray | None = None
    error: str | None = None
    missing: bool = False


def look_at(path: str, full: bool) -> Look:
    """A quick look reads header and bytes; a full one decodes the picture as prediction and training do."""
    try:
        encoded = read(path)
        digest = hashlib.sha256(encoded.data).digest()
        if not full:
            return Look(read_size_hw(path), digest)
        pixels = decode(encoded).pixels
    except ImageMissing:
        return Look(missing=True)
    except (OSError, ImageError, DatasetError) as problem:
        return Look(error=str(problem))
    return Look((pixels.shape[0], pixels.shape[1]), digest, shrink(pixels))


def shrink(pixels: np.ndarray) -> np.ndarray:
    """float32 [256]: mean grey of 16 x 16 fields; the same for a copy of other size or compression, but for noise."""
    plain = pixels if pixels.dtype == np.uint8 else (255 * pixels).astype(np.uint8)
    small = Image.fromarray(plain).convert("L").resize((THUMB, THUMB), Image.Resampling.BOX)
    return np.asarray(small, np.float32).reshape(-1)
