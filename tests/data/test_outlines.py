"""Polygons are filled as the COCO tools fill them, pixel for pixel."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from rapidetr.core.masks import Masks, decode_runs
from rapidetr.data.outlines import fill_outlines

# pycocotools 2 turns its buffers into arrays in a way that numpy 2 warns about
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def reference(polygons: list[np.ndarray], size_hw: tuple[int, int]) -> np.ndarray:
    records = coco_mask.frPyObjects([p.reshape(-1).tolist() for p in polygons], *size_hw)
    return coco_mask.decode(coco_mask.merge(records)).astype(bool)


@pytest.mark.parametrize("seed", range(150))
def test_equals_pycocotools(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size_hw = (int(rng.integers(1, 60)), int(rng.integers(1, 60)))
    polygons = []
    for _ in range(int(rng.integers(1, 4))):
        points = rng.uniform(-8, 68, (int(rng.integers(3, 12)), 2))
        polygons.append([points, points.round(), points.round(1), points * 0.2][seed % 4])
    if seed % 5 == 0:
        polygons[0][1] = polygons[0][0]  # a repeated point
    expected = reference(polygons, size_hw)
    assert Masks(size_hw, [fill_outlines(polygons, size_hw)]) == Masks.from_dense(expected[None])


def test_rectangle_on_pixel_borders_fills_exactly_these_pixels() -> None:
    mask = fill_outlines([np.array([[2.0, 1.0], [5.0, 1.0], [5.0, 4.0], [2.0, 4.0]])], (6, 8))
    expected = np.zeros((6, 8), bool)
    expected[1:4, 2:5] = True
    assert np.array_equal(decode_runs(mask, (6, 8)), expected)


def test_no_polygon_gives_an_empty_mask() -> None:
    assert fill_outlines([], (3, 4)).tolist() == [12]
