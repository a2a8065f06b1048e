"""Polygons to pixels, pixel for pixel as the COCO annotation tools do it, without needing them.

The rule (rleFrPoly in the COCO API, maskApi.c): the outline is drawn at five times the resolution, and wherever it crosses
the centre line of a pixel column, the pixels below that point change between inside and outside.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

SCALE = 5


def fill_outlines(polygons: Iterable[np.ndarray], size_hw: tuple[int, int]) -> np.ndarray:
    """Run lengths (as in core.masks) of the union of polygons, each float [P, 2] as x, y in pixels with P >= 3."""
    total = size_hw[0] * size_hw[1]
    spans = [inside_spans(polygon, size_hw) for polygon in polygons]
    starts, stops = np.concatenate([*spans, np.zeros((0, 2), np.int64)]).T
    order = np.argsort(starts, kind="stable")
    starts, reach = starts[order], np.maximum.accumulate(stops[order])
    gap = starts[1:] > reach[:-1]
    bounds = np.stack([starts[np.r_[True, gap][: len(starts)]], reach[np.r_[gap, True][: len(reach)]]], axis=1).reshape(-1)
    bounds = np.append(bounds, total) if not len(bounds) or bounds[-1] < total else bounds
    return np.diff(bounds, prepend=0).astype(np.uint32)


def inside_spans(polygon: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """int64 [S, 2]: first pixel inside and first pixel outside again, counted down the columns; rising, S may be 0."""
    column, row = crossings(polygon, size_hw)
    pixel, times = np.unique(column * size_hw[0] + row, return_counts=True)
    total = size_hw[0] * size_hw[1]
    pixel = pixel[(times % 2 == 1) & (pixel < total)]
    return (np.append(pixel, total) if len(pixel) % 2 else pixel).reshape(-1, 2)


def crossings(polygon: np.ndarray, size_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Column and row of each pixel at which inside and outside change, running down the columns."""
    height, width = size_hw
    x, y = trace_steps(np.trunc(SCALE * polygon + 0.5).astype(np.int64))
    before, after = slice(None, -1), slice(1, None)
    moved = x[after] != x[before]
    column = (np.minimum(x[after], x[before])[moved] + 0.5) / SCALE - 0.5
    row = np.ceil(np.clip((np.minimum(y[after], y[before])[moved] + 0.5) / SCALE - 0.5, 0, height))
    keep = (column == np.floor(column)) & (column >= 0) & (column <= width - 1)
    return column[keep].astype(np.int64), row[keep].astype(np.int64)


def trace_steps(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every whole point on the closed outline through int `corners` [P, 2], in order."""
    begin, end = corners, np.roll(corners, -1, axis=0)
    span = np.abs(end - begin)
    flat = span[:, 0] >= span[:, 1]  # walk along x where the edge is wider than high
    main = np.where(flat, 0, 1)
    edge = np.arange(len(corners))
    backward = begin[edge, main] > end[edge, main]
    low, high = np.where(backward[:, None], end, begin), np.where(backward[:, None], begin, end)
    length = span[edge, main]
    slope = (high - low)[edge, 1 - main] / np.maximum(length, 1)
    which = np.repeat(edge, length + 1)
    step = np.arange(len(which)) - np.repeat(np.cumsum(length + 1) - length - 1, length + 1)
    step = np.where(backward[which], length[which] - step, step)
    along = low[edge, main][which] + step
    across = np.trunc(low[edge, 1 - main][which] + slope[which] * step + 0.5).astype(np.int64)
    return np.where(flat[which], along, across), np.where(flat[which], across, along)
