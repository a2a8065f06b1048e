"""Pictures -> network input: stretch, scale to 0..1, normalize, stack. The one definition; others are tested against it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from rapidetr.core.errors import ConfigError, ImageError
from rapidetr.core.outputs import Batch, Geometry
from rapidetr.core.preprocessing import FILTERS, Preprocessing
from rapidetr.pixels.resample import neighbors


def prepare(
    pictures: Sequence[np.ndarray],
    size_hw: tuple[int, int],
    preprocessing: Preprocessing,
    *,
    filter: str,
    geometries: Sequence[Geometry] | None = None,
) -> Batch:
    """Batch float32 [B, C, *size_hw] of pictures [H, W, C], uint8 0..255 or float 0..1, each stretched to `size_hw`.

    `geometries` tells where tiles come from; without it each picture is a whole one.
    """
    geometries = check_pictures(pictures, size_hw, filter, geometries)
    channels = pictures[0].shape[2]
    mean, std = normalization(preprocessing, channels)
    out = np.empty((len(pictures), channels, *size_hw), np.float32)
    for picture, target in zip(pictures, out, strict=True):
        if picture.shape[:2] != tuple(size_hw) and filter == "bilinear":
            sample_bilinear(picture, target, mean, std)
        else:
            normalize(resize_antialiased(picture, size_hw), target, mean, std)
    return Batch(out, geometries, filter)


def check_pictures(
    pictures: Sequence[np.ndarray], size_hw: tuple[int, int], filter: str, geometries: Sequence[Geometry] | None
) -> tuple[Geometry, ...]:
    """The geometry of each picture; ConfigError or ImageError for what cannot be one batch."""
    if filter not in FILTERS:
        raise ConfigError(f"filter is {filter!r}; expected one of {', '.join(FILTERS)}")
    if not pictures or min(size_hw) < 1:
        raise ConfigError(f"{len(pictures)} pictures to a size of {size_hw[0]}x{size_hw[1]}; expected at least one picture and one pixel")
    for picture in pictures:
        if picture.ndim != 3 or not picture.size or picture.dtype not in (np.uint8, np.float32):
            raise ImageError(
                f"a picture is {picture.dtype} {picture.shape}; expected uint8 or float32 [height, width, channels], not empty"
            )
    if len({p.shape[2] for p in pictures}) > 1:
        raise ImageError(f"pictures of one batch have {sorted({p.shape[2] for p in pictures})} channels; expected equally many")
    if geometries is None:
        return tuple(Geometry(image_hw=p.shape[:2]) for p in pictures)
    if [g.image_hw for g in geometries] != [p.shape[:2] for p in pictures]:
        raise ConfigError("geometries do not match the pictures; expected one for each, image_hw being its height and width")
    return tuple(geometries)


def normalization(preprocessing: Preprocessing, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """(mean, std) float32 [channels], repeated cyclically where a picture has more channels than they have entries."""
    return np.resize(np.array(preprocessing.mean, np.float32), channels), np.resize(np.array(preprocessing.std, np.float32), channels)


def sample_bilinear(picture: np.ndarray, target: np.ndarray, mean: np.ndarray, std: np.ndarray) -> None:
    """Writes the normalized picture, sampled at four neighbors, to `target` [C, h, w].

    Only the rows and columns that are needed leave uint8; 1/255 is part of the vertical weights.
    """
    channels, height, width = target.shape
    (top, bottom, down), (left, right, across) = neighbors(picture.shape[0], height), neighbors(picture.shape[1], width)
    if 2 * height < picture.shape[0]:
        rows, place = np.unique(np.concatenate([top, bottom]), return_inverse=True)
        picture, top, bottom = picture[rows], place[:height], place[height:]
    flat = picture.reshape(len(picture), -1)
    plane = np.arange(channels)[:, None]
    low = flat.take((left * channels + plane).reshape(-1), axis=1).astype(np.float32)  # [rows, C * width], plane by plane
    high = flat.take((right * channels + plane).reshape(-1), axis=1).astype(np.float32)
    high -= low
    high *= np.tile(across, channels)
    low += high
    lines = low.reshape(-1, channels, width)
    unit = 255 if picture.dtype == np.uint8 else 1
    from_top, from_bottom = (((w / unit).astype(np.float32))[:, None] for w in (1 - down.astype(np.float64), down.astype(np.float64)))
    for c in range(channels):
        np.multiply(lines[top, c], from_top, out=target[c])
        target[c] += lines[bottom, c] * from_bottom
        target[c] -= mean[c]  # only now: folding mean and std into the factors costs a digit
        target[c] /= std[c]


def resize_antialiased(picture: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Pillow's bilinear resize of uint8 RGB, or channel by channel (the same numbers) of anything else."""
    if picture.shape[:2] == tuple(size_hw):
        return picture
    size_wh = (size_hw[1], size_hw[0])
    if picture.dtype == np.uint8 and picture.shape[2] == 3:
        return np.asarray(Image.fromarray(picture).resize(size_wh, Image.Resampling.BILINEAR))
    planes = (Image.fromarray(np.ascontiguousarray(picture[:, :, c])) for c in range(picture.shape[2]))
    return np.stack([np.asarray(p.resize(size_wh, Image.Resampling.BILINEAR)) for p in planes], axis=2)


def normalize(picture: np.ndarray, target: np.ndarray, mean: np.ndarray, std: np.ndarray) -> None:
    """Writes (value - mean) / std of a picture of the right size to `target` [C, h, w]; uint8 goes through a table of 256."""
    for c in range(len(target)):
        if picture.dtype == np.uint8:
            table = (np.arange(256, dtype=np.float32) / np.float32(255) - mean[c]) / std[c]
            np.take(table, picture[:, :, c], out=target[c], mode="clip")  # "clip" writes to `out` without a copy
        else:
            target[c] = (picture[:, :, c] - mean[c]) / std[c]
