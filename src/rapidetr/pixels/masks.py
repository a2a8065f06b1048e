"""Mask logits of a quarter of the input size -> run lengths at the size of the user's picture, without the dense picture.

Between two neighboring rows of a bilinear upsampling the value moves one way only. Where both rows are positive, all
pixels between are; where neither is, none is; only where they differ has the last positive pixel to be found. So the work
follows the outline of a mask, not its area, and no array of H x W exists at any time.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from rapidetr.core.errors import NotFinite
from rapidetr.core.masks import Masks
from rapidetr.core.outputs import Geometry
from rapidetr.pixels.resample import neighbors


def upsample_masks(logits: np.ndarray, chosen: Iterable[int], geometry: Geometry) -> Masks:
    """Masks of the whole picture, one for each entry of `chosen` into float [Q, h, w]: bilinear resize above zero.

    Half-pixel centers, no antialias, horizontal first, as torch resizes; not cropped to any box. NotFinite for values
    that are not finite.
    """
    counts: dict[int, np.ndarray] = {}  # a query may have been chosen under several labels
    chosen = [int(q) for q in chosen]
    for q in dict.fromkeys(chosen):
        if not np.isfinite(logits[q]).all():
            raise NotFinite(f"the network returned mask logits that are not finite (query {q}); try float32, or check the weights")
        counts[q] = runs_above_zero(np.asarray(logits[q], np.float32), geometry)
    return Masks(geometry.full_hw, [counts[q] for q in chosen])


def runs_above_zero(logits: np.ndarray, geometry: Geometry) -> np.ndarray:
    """uint32 counts (core/masks.py) of float32 [h, w], stretched over the picture or tile that `geometry` describes."""
    (height, width), (y, x), (full_height, full_width) = geometry.image_hw, geometry.offset_yx, geometry.full_hw
    positive = logits > 0
    rows, columns = np.flatnonzero(positive.any(axis=1)), np.flatnonzero(positive.any(axis=0))
    total = full_height * full_width
    if not len(rows):
        return np.array([total], np.uint32)
    left, right, across = neighbors(logits.shape[1], width)
    begin, end = np.searchsorted(right, columns[0]), np.searchsorted(left, columns[-1], side="right")
    top = max(int(rows[0]) - 1, 0)  # one row more on each side: the outline lies between it and the first positive one
    band = logits[top : rows[-1] + 2].T
    weight = across[begin:end, None]
    lines = band[left[begin:end]] * (1 - weight) + band[right[begin:end]] * weight  # [columns, low rows], column by column
    column, edge = find_edges(lines, top, logits.shape[0], height)
    flat = (column + begin + x) * full_height + edge + y
    places, times = np.unique(flat, return_counts=True)
    places = places[times % 2 == 1]  # where an empty run lies, or two runs join, two edges cancel each other
    counts = np.diff(places, prepend=0, append=total)
    return np.asarray(counts[:-1] if counts[-1] == 0 and len(counts) > 1 else counts, np.uint32)


def find_edges(lines: np.ndarray, top: int, length_in: int, length_out: int) -> tuple[np.ndarray, np.ndarray]:
    """(column, y) of every change of sign, int64, ordered; y runs 0..length_out, a run still open at the bottom ends there.

    lines float32 [columns, rows] are the rows top, top + 1, ... of `length_in`, already at full width.
    """
    low, _, down = neighbors(length_in, length_out)
    n = lines.shape[1]
    starts = np.searchsorted(low, np.arange(top, top + n + 1))  # first pixel at or below each low row
    signs = np.zeros((len(lines), n + 2), bool)
    signs[:, 1:-1] = lines > 0
    column, pair = np.nonzero(signs[:, 1:] != signs[:, :-1])  # pair p lies between the low rows p - 1 and p
    outside = (pair == 0) | (pair == n)  # a run that is open at the top or bottom of the picture
    last = starts[pair]
    first = np.where(outside, last, starts[pair - 1])
    upper, lower = lines[column, pair - 1], lines[column, np.minimum(pair, n - 1)]
    begins = lower > 0
    while (searching := first < last).any():  # bisection for the first pixel that has the sign of the lower row
        middle = np.minimum((first + last) // 2, length_out - 1)
        weight = down[middle]
        changed = (upper * (1 - weight) + lower * weight > 0) == begins
        last = np.where(searching & changed, middle, last)
        first = np.where(searching & ~changed, middle + 1, first)
    return column, first
