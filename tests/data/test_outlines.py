"""Polygons are filled as the COCO tools fill them, pixel for pixel."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from rapidetr.core.masks import Masks, decode_runs
from rapidetr.data import records
from rapidetr.data.outlines import fill_outlines
from rapidetr.data.records import Annotation, ImageRecord

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


@pytest.mark.parametrize("seed", range(40))
def test_an_object_without_outline_is_its_box_however_far_it_reaches(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes time and memory by the length of an outline, so only what can be seen is drawn."""
    rng = np.random.default_rng(seed)
    size_hw = (int(rng.integers(1, 40)), int(rng.integers(1, 40)))
    box = np.sort(rng.uniform(-30, 70, (2, 2)), 0)[[0, 0, 1, 1], [0, 1, 0, 1]].round(seed % 3)
    record = ImageRecord.build([Annotation(0, 0, tuple(box))], path="a.jpg", image_id=1, split="train", size_hw=size_hw, file="a.json")
    stored = record.boxes_xyxy_px[0].astype(float)
    x0, y0, x1, y1 = stored
    expected = reference([np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])], size_hw)
    assert record.masks() == Masks.from_dense(expected[None])
    drawn: list[float] = []
    monkeypatch.setattr(records, "fill_outlines", lambda outline, size: drawn.append(float(np.abs(outline[0]).max())) or np.array([0]))
    far = Annotation(0, 0, (-1e8, 0.0, 1e8, 5.0))
    ImageRecord.build([far], path="a.jpg", image_id=1, split="train", size_hw=(6, 8), file="a.json").masks()
    assert drawn == [9.0]
