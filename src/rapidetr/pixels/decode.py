"""Anything that people call a picture -> RGB array, or one line that says what is wrong with it."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from rapidetr.core.clock import StageClock
from rapidetr.core.errors import ImageError
from rapidetr.pixels.read import Encoded, ImageLimits, one_line, read

__all__ = ["Encoded", "ImageLimits", "Picture", "decode", "load_picture", "read"]

# Only formats of plain pictures: EPS and its like would start other programs.
PLUGINS = {"JPEG": "Jpeg", "PNG": "Png", "WEBP": "WebP", "GIF": "Gif", "BMP": "Bmp", "TIFF": "Tiff", "PPM": "Ppm", "AVIF": "Avif"}
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by EXIF orientation
ORIENTATION = 0x0112
DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True)
class Picture:
    """`pixels` RGB [H, W, 3], uint8 0..255 or float32 0..1, C-contiguous; `source` is its path or address, where there is one."""

    pixels: np.ndarray
    source: str | None = None


def load_picture(source: Any, limits: ImageLimits = ImageLimits(), clock: StageClock | None = None) -> Picture:  # noqa: B008 - frozen
    """The picture that a path, http(s) address, bytes, PIL image, array or tensor stands for; ImageError, ImageMissing.

    A Picture is already one and stays as it is.
    """
    if isinstance(source, Picture):
        return source
    clock = clock or StageClock()
    with clock.stage("read"):
        encoded = read(source, limits)
    with clock.stage("decode"):
        return decode(encoded, limits)


def decode(source: Any, limits: ImageLimits = ImageLimits()) -> Picture:  # noqa: B008 - frozen
    """The picture in Encoded bytes, a PIL image, an RGB array [H, W, 3] (or [H, W], [H, W, 1], [H, W, 4]) or a tensor [C, H, W].

    Orientation in the metadata is applied, alpha dropped, the first frame taken. Arrays are uint8, or float in 0..1;
    tensors are float in 0..1. ImageError for anything else.
    """
    if isinstance(source, Encoded):
        return Picture(decode_bytes(source, limits), source.source)
    if isinstance(source, Image.Image):
        name = getattr(source, "filename", "") or None
        return Picture(guarded(source, f"PIL image {name or ''}".strip(), limits), name)
    if hasattr(source, "detach") and hasattr(source, "ndim"):  # open files have `detach`, too
        return Picture(check_array(channels_last(source), "tensor"))
    if isinstance(source, np.ndarray):
        return Picture(check_array(source, "array"))
    raise ImageError(
        f"got {type(source).__name__}; expected a path, an address, bytes, a PIL image, an RGB array or a tensor [3, height, width]"
    )


@cache
def openers() -> dict[str, tuple[Callable[[io.BytesIO, str], Image.Image], Callable[[bytes], bool | str]]]:
    """Format -> (opener, test of the first bytes), for those that this Pillow knows."""
    for plugin in PLUGINS.values():
        with suppress(ImportError):  # AVIF is younger than the oldest Pillow we take
            importlib.import_module(f"PIL.{plugin}ImagePlugin")
    return {name: Image.OPEN[name] for name in PLUGINS if name in Image.OPEN}  # type: ignore[misc]


def decode_bytes(encoded: Encoded, limits: ImageLimits) -> np.ndarray:
    """RGB uint8 or float32 of the bytes of a file.

    Calls Pillow's openers themselves: its `open` has a global limit of pixels and warns below it.
    """
    if not encoded.data:
        raise ImageError(f"{encoded.name} is empty (0 bytes); copy or download it again")
    damage: object = None
    for opener, accepts in openers().values():
        accepted = accepts(encoded.data[:16])
        if accepted and not isinstance(accepted, str):  # a text says that this Pillow was built without the format
            try:
                image = opener(io.BytesIO(encoded.data), "")
            except Exception as problem:  # a damaged header can raise anything
                damage = problem
                continue
            return guarded(image, encoded.name, limits)
    if damage is not None:
        raise broken(encoded.name, damage)
    known, start = ", ".join(openers()), encoded.data[:8]
    raise ImageError(f"{encoded.name} is not a picture of a known format (it begins with {start!r}); expected {known}; convert it")


def broken(name: str, problem: object) -> ImageError:
    return ImageError(f"{name} is damaged or cut off ({one_line(problem)}); copy or export it again")


def guarded(image: Image.Image, name: str, limits: ImageLimits) -> np.ndarray:
    """RGB of an opened PIL image; every failure inside Pillow becomes an ImageError."""
    width, height = image.size
    if not width or not height:
        raise ImageError(f"{name} is {height}x{width}; expected at least one pixel")
    if width * height > limits.max_pixels:
        limit = f"ImageLimits.max_pixels={limits.max_pixels}"
        raise ImageError(f"{name} is {height}x{width}, more than {limit}; make it smaller, or raise the limit if you trust it")
    try:
        image.load()
        return to_rgb(upright(image), name)
    except ImageError:
        raise
    except Exception as problem:  # damaged data can raise anything: OSError, SyntaxError, struct.error, ZeroDivisionError, ...
        raise broken(name, problem) from None


def upright(image: Image.Image) -> Image.Image:
    """The image turned as its metadata say; metadata that cannot be read turn nothing."""
    try:
        turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:
        return image
    return image if turn is None else image.transpose(turn)


def to_rgb(image: Image.Image, name: str) -> np.ndarray:
    """RGB [H, W, 3] of a PIL image of any mode: 16 bits are scaled to 8, where Pillow would clip; mode F must be in 0..1."""
    if image.mode in DEEP_MODES:
        deep = np.asarray(image)
        if deep.min() < 0 or deep.max() > 65535:
            raise ImageError(f"{name} has values {deep.min()}..{deep.max()}; expected 16 bits, 0..65535; scale it")
        return stack_gray(((deep.astype(np.uint32) + 128) // 257).astype(np.uint8))  # value / 257, rounded
    if image.mode == "F":
        return check_array(np.asarray(image), name)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB, Pillow warns about transparency that it cannot keep
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def stack_gray(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray[:, :, None], 3, axis=2)


def channels_last(tensor: Any) -> np.ndarray:
    """float32 [H, W, C] of a torch tensor [C, H, W] on any device; torch itself is not needed here."""
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3, 4):
        raise ImageError(f"tensor has shape {list(tensor.shape)}; expected [3, height, width]; pass a batch as a list of pictures")
    if not tensor.is_floating_point():
        raise ImageError(f"tensor is {tensor.dtype}; expected float in 0..1; divide by 255")
    array: np.ndarray = tensor.detach().cpu().float().numpy()
    return array.transpose(1, 2, 0)


def check_array(array: np.ndarray, name: str) -> np.ndarray:
    """RGB [H, W, 3], C-contiguous, of an array that is gray, RGB or RGBA, uint8 or float in 0..1."""
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or not array.size:
        first = "; it looks like channels first: use array.transpose(1, 2, 0)" if array.ndim == 3 and array.shape[0] in (1, 3, 4) else ""
        raise ImageError(f"{name} has shape {list(array.shape)}; expected [height, width, 3]{first}")
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):  # also catches NaN
            raise ImageError(f"{name} has values {low:g}..{high:g}; expected uint8 0..255, or float in 0..1")
        array = array.astype(np.float32, copy=False)
    elif array.dtype != np.uint8:
        raise ImageError(f"{name} is {array.dtype}; expected uint8 0..255, or float in 0..1")
    return stack_gray(array[:, :, 0]) if array.shape[2] == 1 else np.ascontiguousarray(array[:, :, :3])
