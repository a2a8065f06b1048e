"""Tiles: every pixel is seen, every object is reported once."""

from __future__ import annotations

import numpy as np
import pytest

from rapidetr.core.detections import Detections
from rapidetr.core.errors import ConfigError
from rapidetr.core.labels import LabelSpace
from rapidetr.core.masks import Masks
from rapidetr.core.outputs import Geometry
from rapidetr.pixels.tiles import cut, merge

LABELS = LabelSpace.contiguous(["cat", "dog"], head_rows=2)
WHOLE = (240, 300)


def views_of(tile: tuple[int, int], overlap: float, whole: tuple[int, int] = WHOLE, **options: bool) -> list[Geometry]:
    return [geometry for _, geometry in cut(np.zeros((*whole, 3), np.uint8), tile, overlap, **options)]


def detect(
    objects: np.ndarray, rows: np.ndarray, tile: Geometry, scores: np.ndarray, *, masks: bool = False, least: float = 2
) -> Detections:
    """A perfect detector: the visible part of every box of which at least `least` pixels a side are inside the tile."""
    (h, w), (y, x) = tile.image_hw, tile.offset_yx
    boxes = np.clip(objects, [x, y, x, y], [x + w, y + h, x + w, y + h]).astype(np.float32)
    seen = ((boxes[:, 2:] - boxes[:, :2]) >= least).all(axis=1)
    boxes, order = boxes[seen], np.argsort(-scores[seen], kind="stable")
    dense = np.zeros((len(boxes), *tile.full_hw), bool)
    for plane, (x0, y0, x1, y1) in zip(dense, boxes.astype(int), strict=True):
        plane[y0:y1, x0:x1] = True
    found = Detections(boxes, scores[seen].astype(np.float32), rows[seen], LABELS, tile.full_hw, Masks.from_dense(dense) if masks else None)
    return found[order]


@pytest.mark.parametrize("whole", [(240, 300), (64, 500), (50, 40), (101, 97), (1, 1)])
@pytest.mark.parametrize(("tile", "overlap"), [((64, 80), 0.0), ((64, 64), 0.25), ((97, 31), 0.9), ((1000, 50), 0.5)])
def test_tiles_cover_every_pixel_and_lie_inside(whole: tuple[int, int], tile: tuple[int, int], overlap: float) -> None:
    picture = np.arange(whole[0] * whole[1] * 3, dtype=np.uint32).astype(np.uint8).reshape(*whole, 3)
    covered = np.zeros(whole, int)
    for view, geometry in cut(picture, tile, overlap):
        (h, w), (y, x) = geometry.image_hw, geometry.offset_yx
        assert view.shape[:2] == (h, w) == (min(tile[0], whole[0]), min(tile[1], whole[1]))
        assert np.array_equal(view, picture[y : y + h, x : x + w])
        assert geometry.full_hw == whole
        covered[y : y + h, x : x + w] += 1
    assert covered.min() >= 1


def test_neighbors_overlap_by_the_share_asked_for() -> None:
    left = sorted({g.offset_yx[1] for g in views_of((100, 100), 0.3)})
    assert left == [0, 70, 140, 200]


def test_the_whole_picture_is_one_more_view_unless_it_is_the_only_tile() -> None:
    assert views_of((100, 100), 0.0, include_whole=True)[-1] == Geometry(WHOLE)
    assert len(views_of((400, 400), 0.0, include_whole=True)) == 1


def test_bad_tiles_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^tiles of 64x0 with overlap 0.2; expected at least one pixel and 0 <= overlap < 1$"):
        views_of((64, 0), 0.2)
    with pytest.raises(ConfigError, match=r"^tiles of 64x64 with overlap 1; "):
        views_of((64, 64), 1)


def scattered(seed: int, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes of at most `side` pixels in cells of their own, two classes, scores; no two share a pixel."""
    rng = np.random.default_rng(seed)
    cells = np.array([(x, y) for y in range(0, WHOLE[0], side + 8) for x in range(0, WHOLE[1], side + 8)])
    size = rng.integers(side // 2, side + 1, cells.shape)
    boxes = np.concatenate([cells + 4, cells + 4 + size], axis=1).astype(float)
    boxes = boxes[(boxes[:, 2] <= WHOLE[1]) & (boxes[:, 3] <= WHOLE[0])]
    return boxes, rng.integers(0, 2, len(boxes)), rng.permutation(len(boxes)) / len(boxes) * 0.5 + 0.4


def same_boxes(found: Detections, objects: np.ndarray, rows: np.ndarray) -> bool:
    ours = sorted((int(r), *b) for r, b in zip(found.head_rows, np.round(found.boxes_xyxy_px, 3).tolist(), strict=True))
    return ours == sorted((int(r), *b) for r, b in zip(rows, objects.tolist(), strict=True))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("overlap", "include_whole"), [(0.4, False), (0.4, True), (0.6, False)])
def test_objects_that_fit_into_the_overlap_are_found_exactly_once(seed: int, overlap: float, include_whole: bool) -> None:
    objects, rows, scores = scattered(seed, 36)  # 40 percent of 100 pixels overlap: each object is whole in some tile
    tiles = views_of((100, 100), overlap, include_whole=include_whole)
    rng = np.random.default_rng(seed)
    found = merge([detect(objects, rows, t, rng.permutation(scores)) for t in tiles], tiles)  # every tile is sure of something else
    assert same_boxes(found, objects, rows)
    assert (np.diff(found.scores) <= 0).all()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.2])
def test_objects_that_no_tile_sees_whole_are_joined(seed: int, overlap: float) -> None:
    objects, rows, scores = scattered(seed, 52)
    tiles = views_of((100, 100), overlap)
    found = merge([detect(objects, rows, t, scores, masks=True, least=1) for t in tiles], tiles)
    assert same_boxes(found, objects, rows)
    assert found.masks is not None
    sides = found.boxes_xyxy_px[:, 2:] - found.boxes_xyxy_px[:, :2]
    assert found.masks.areas.tolist() == np.prod(sides, axis=1).astype(int).tolist()  # pieces of the mask are joined, too


def test_an_object_over_four_tiles_is_reported_once_with_its_best_score() -> None:
    tiles = views_of((130, 160), 0.0, (260, 320))
    objects, rows = np.array([[100.0, 90, 250, 200]]), np.array([1])
    parts = [detect(objects, rows, t, np.array([s])) for t, s in zip(tiles, (0.5, 0.6, 0.9, 0.7), strict=True)]
    found = merge(parts, tiles)
    assert found.boxes_xyxy_px.tolist() == [[100, 90, 250, 200]]
    assert found.scores.tolist() == [np.float32(0.9)]


def test_a_sure_half_gives_way_to_the_unsure_whole() -> None:
    tiles = [Geometry((100, 100), (0, 0), (100, 160)), Geometry((100, 100), (0, 60), (100, 160))]
    objects, rows = np.array([[70.0, 20, 130, 80]]), np.array([0])
    found = merge([detect(objects, rows, t, np.array([s])) for t, s in zip(tiles, (0.95, 0.6), strict=True)], tiles)
    assert found.boxes_xyxy_px.tolist() == [[70, 20, 130, 80]]


def test_what_one_tile_says_about_one_object_or_two_is_not_overruled() -> None:
    tiles = [Geometry((100, 100), (0, 0), (100, 160)), Geometry((100, 100), (0, 60), (100, 160))]
    boxes = np.float32([[10, 10, 50, 50], [12, 10, 52, 50]])
    first = Detections(boxes, np.float32([0.9, 0.8]), np.array([0, 0]), LABELS, (100, 160))
    assert len(merge([first, Detections.empty(LABELS, (100, 160))], tiles)) == 2


def test_classes_are_not_mixed() -> None:
    tiles = [Geometry((100, 100), (0, 0), (100, 160)), Geometry((100, 100), (0, 60), (100, 160))]
    box = np.float32([[65, 10, 95, 50]])
    parts = [Detections(box, np.float32([0.9]), np.array([row]), LABELS, (100, 160)) for row in (0, 1)]
    assert len(merge(parts, tiles)) == 2


def test_predicted_sides_scatter() -> None:
    """A real network puts the cut side of a box near the border, not on it."""
    tiles = [Geometry((100, 100), (0, 0), (100, 190)), Geometry((100, 100), (0, 90), (100, 190))]
    left = Detections(np.float32([[50, 20, 98.5, 80]]), np.float32([0.9]), np.array([0]), LABELS, (100, 190))
    right = Detections(np.float32([[91.5, 22, 140, 79]]), np.float32([0.8]), np.array([0]), LABELS, (100, 190))
    assert merge([left, right], tiles).boxes_xyxy_px.tolist() == [[50, 20, 140, 80]]


def test_parts_and_tiles_go_together() -> None:
    with pytest.raises(ConfigError, match=r"^0 parts for 0 tiles; expected one for each, at least one$"):
        merge([], [])
    tiles = views_of((100, 100), 0.0)
    assert len(merge([Detections.empty(LABELS, WHOLE) for _ in tiles], tiles)) == 0
