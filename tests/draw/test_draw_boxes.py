"""Pictures with boxes, masks and labels: where pixels change and where they must not."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rapidetr.core.detections import Detections
from rapidetr.core.errors import ConfigError
from rapidetr.core.labels import LabelSpace
from rapidetr.core.masks import Masks
from rapidetr.draw import boxes
from rapidetr.draw.boxes import FILL_OPACITY, draw_detections
from rapidetr.draw.colors import class_color

LABELS = LabelSpace.contiguous(["cat", "dog"])
GRAY = np.full((80, 120, 3), 90, np.uint8)


def found(boxes_xyxy_px: Any, rows: list[int] | None = None, labels: LabelSpace = LABELS, masks: Any = None) -> Detections:
    n = len(boxes_xyxy_px)
    held = None if masks is None else Masks.from_dense(masks)
    return Detections(
        np.float32(boxes_xyxy_px), np.linspace(0.9, 0.1, n, dtype=np.float32), np.array(rows or [0] * n), labels, (80, 120), held
    )


def test_box_lines_lie_on_the_pixels_of_the_box() -> None:
    drawn = np.asarray(draw_detections(found([[10, 20, 50, 60]]), GRAY, labels=False, thickness=2))
    expected = GRAY.copy()
    expected[20:60, 10:50] = class_color(0)
    expected[22:58, 12:48] = GRAY[0, 0]
    assert (drawn == expected).all()
    assert (GRAY == 90).all()  # the picture of the user is untouched


def test_best_is_on_top_and_classes_have_their_color() -> None:
    drawn = draw_detections(found([[10, 20, 50, 60], [10, 20, 50, 60], [60, 20, 70, 60]], [1, 0, 2]), GRAY, labels=False)
    assert drawn.getpixel((10, 20)) == class_color(1)
    assert drawn.getpixel((60, 20)) == class_color(-1)


@pytest.mark.parametrize(
    "box", [[0, 0, 120, 80], [-5, -5, 500, 500], [0, 0, 0, 0], [120, 80, 120, 80], [30.7, 20.2, 30.7, 20.2], [5, 9, 5, 70]]
)
def test_boxes_at_the_border_and_without_area(box: list[float]) -> None:
    drawn = np.asarray(draw_detections(found([box]), GRAY, labels=False, thickness=1))
    assert (drawn != GRAY).any(axis=2).sum() >= 1
    assert drawn.shape == GRAY.shape


def test_masks_shine_through_and_have_an_outline() -> None:
    mask = np.zeros((1, 80, 120), bool)
    mask[0, 30:50, 40:70] = True
    drawn = np.asarray(draw_detections(found([[0, 0, 5, 5]], masks=mask), GRAY, labels=False, thickness=3))
    color = np.array(class_color(0))
    mixed = (90 * (255 - FILL_OPACITY) + color * FILL_OPACITY) / 255
    assert np.abs(drawn[33:47, 43:67] - mixed).max() <= 1  # Pillow rounds once more
    edge = mask[0].copy()
    edge[33:47, 43:67] = False
    assert (drawn[edge] == color).all()
    assert (drawn[~mask[0]][600:] == 90).all()  # below the box of five pixels
    plain = np.asarray(draw_detections(found([[0, 0, 5, 5]], masks=mask), GRAY, labels=False, masks=False))
    assert (plain[mask[0]] == 90).all()


def test_empty_and_one_pixel_masks() -> None:
    masks = np.zeros((3, 80, 120), bool)
    masks[1, 0, 0] = masks[2, 79, 119] = True
    drawn = draw_detections(found([[50, 40, 60, 50]] * 3, masks=masks), GRAY, labels=False)
    assert drawn.getpixel((0, 0)) == drawn.getpixel((119, 79)) == class_color(0)


def test_float_pictures_and_nothing_found() -> None:
    drawn = draw_detections(Detections.empty(LABELS, (80, 120)), GRAY.astype(np.float32) / 255)
    assert (drawn.mode, drawn.size) == ("RGB", (120, 80))
    assert (np.asarray(drawn) == GRAY).all()


def test_a_picture_of_another_size_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        draw_detections(Detections.empty(LABELS, (120, 80)), GRAY)
    assert str(caught.value) == ("detections are of a picture of 120x80 (height x width), this one is 80x120; draw on the same picture")
    with pytest.raises(ConfigError, match=r"^thickness is 0; expected at least 1 pixel$"):
        draw_detections(Detections.empty(LABELS, (80, 120)), GRAY, thickness=0)


def label_places(detections: Detections, monkeypatch: pytest.MonkeyPatch, size_hw: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    placed = []

    def watch(*arguments: Any) -> tuple[int, int, int, int]:
        placed.append(free_place(*arguments))
        return placed[-1]

    free_place = boxes._free_place
    monkeypatch.setattr(boxes, "_free_place", watch)
    draw_detections(detections, np.zeros((*size_hw, 3), np.uint8))
    return placed


def test_labels_lie_in_the_picture_and_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve boxes, some at the borders and two the same, leave room for every label."""
    corners = [
        (0, 0),
        (0, 400),
        (0, 799),
        (300, 0),
        (300, 400),
        (300, 799),
        (599, 0),
        (599, 400),
        (599, 799),
        (150, 200),
        (150, 200),
        (450, 600),
    ]
    xyxy = [[max(x - 30, 0), max(y - 30, 0), min(x + 30, 800), min(y + 30, 600)] for y, x in corners]
    some = Detections(np.float32(xyxy), np.ones(12, np.float32), np.zeros(12, np.int64), LABELS, (600, 800))
    placed = label_places(some, monkeypatch, (600, 800))
    assert len(placed) == 12
    covered = np.zeros((600, 800), int)
    for x0, y0, x1, y1 in placed:
        assert 0 <= x0 < x1 <= 800
        assert 0 <= y0 < y1 <= 600
        covered[y0:y1, x0:x1] += 1
    assert covered.max() == 1


def test_label_is_above_its_box_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    one = found([[20, 40, 60, 70]])
    ((x0, _, _, y1),) = label_places(one, monkeypatch, (80, 120))
    assert (x0, y1) == (20, 40)


def test_letters_and_lines_grow_with_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    heights = []
    for side in (300, 3000):
        one = Detections(np.float32([[side / 2] * 2 + [side] * 2]), np.ones(1, np.float32), np.array([0]), LABELS, (side, side))
        ((_, y0, _, y1),) = label_places(one, monkeypatch, (side, side))
        heights.append(y1 - y0)
        monkeypatch.undo()
        drawn = np.asarray(draw_detections(one, np.zeros((side, side, 3), np.uint8), labels=False))
        assert (drawn[side * 3 // 4, side // 2 :] != 0).any(axis=1).sum() == 2 * side // 300
    assert heights[1] > 4 * heights[0]


@pytest.mark.parametrize(
    "name", ["日本語", "Ärger é", "مرحبا", "😀", "\ud800", "two\nlines\ttab", "", " ", "\x00", "long name " * 100], ids=ascii
)
def test_any_name_can_be_written(name: str) -> None:
    labels = LabelSpace.contiguous([name])
    drawn = np.asarray(draw_detections(found([[20, 40, 60, 70]], labels=labels), GRAY))
    assert (drawn[20:40, 21:100] != GRAY[20:40, 21:100]).any()


@pytest.mark.parametrize("size_hw", [(1, 1), (3, 200), (200, 3), (12, 12)])
def test_pictures_that_no_label_fits_in(size_hw: tuple[int, int]) -> None:
    one = Detections(np.float32([[0, 0, 1, 1]]), np.ones(1, np.float32), np.array([0]), LABELS, size_hw)
    assert draw_detections(one, np.zeros((*size_hw, 3), np.uint8)).size == size_hw[::-1]


def test_masks_are_painted_one_at_a_time() -> None:
    """Sixty masks of a quarter of 2 megapixels: dense they are 120 MB, one after the other a few crops."""
    side = 1400
    runs = np.r_[0, np.tile([700, 700], 700)].astype(np.uint32)
    runs[-1] += 1400 * 700
    n = 60
    many = Detections(
        np.tile(np.float32([[0, 0, 700, 700]]), (n, 1)),
        np.ones(n, np.float32),
        np.zeros(n, np.int64),
        LABELS,
        (side, side),
        Masks((side, side), [runs] * n),
    )
    picture = np.zeros((side, side, 3), np.uint8)
    tracemalloc.start()
    drawn = draw_detections(many, picture, labels=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert drawn.getpixel((350, 350)) != (0, 0, 0)
    assert drawn.getpixel((1000, 350)) == (0, 0, 0)
    assert peak < 30e6


def test_detections_draw_themselves(tmp_path: Any) -> None:
    path = tmp_path / "gray.png"
    Image.fromarray(GRAY).save(path)
    drawn = found([[20, 40, 60, 70]]).draw(path, labels=False)
    assert (np.asarray(drawn) == np.asarray(draw_detections(found([[20, 40, 60, 70]]), GRAY, labels=False))).all()
