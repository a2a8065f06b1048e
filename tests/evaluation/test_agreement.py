"""How far two lists of detections agree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rapidetr.core.detections import Detections
from rapidetr.core.errors import ConfigError
from rapidetr.core.labels import LabelSpace
from rapidetr.evaluation import agreement

LABELS = LabelSpace.contiguous(["cat", "dog"])


def random_detections(seed: int, n: int) -> Detections:
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 100, (n, 2))
    boxes = np.concatenate([corner, corner + rng.integers(0, 60, (n, 2))], axis=1).astype(np.float32)
    boxes[n // 2 :] = boxes[: n - n // 2]  # the same boxes again, with other scores
    return Detections(boxes, np.sort(rng.random(n).astype(np.float32))[::-1], rng.integers(0, 2, n), LABELS, (200, 200))


def test_a_list_agrees_with_itself() -> None:
    detections = [random_detections(seed, n) for seed, n in enumerate((0, 1, 7, 60))]
    result = agreement(detections, detections)
    assert (result.images, result.first, result.second, result.matched) == (4, 68, 68, 68)
    assert result.matched_fraction == 1
    assert result.score_shift_max == result.box_shift_px_max == 0
    assert result.to_dict()["matched_fraction"] == 1
    backward = agreement(detections, [d[::-1] for d in detections])
    assert (backward.matched, backward.score_shift_max, backward.box_shift_px_max) == (68, 0, 0)


def test_an_empty_box_agrees_with_itself() -> None:
    line = Detections(np.array([[10, 10, 10, 50]], np.float32), np.array([0.5], np.float32), np.array([0]), LABELS, (200, 200))
    assert agreement([line], [line]).matched_fraction == 1


def test_shifts_are_those_that_were_made() -> None:
    boxes = np.array([[10, 10, 50, 50], [100, 100, 160, 140], [10, 100, 40, 130]], np.float32)
    a = Detections(boxes, np.array([0.9, 0.8, 0.7], np.float32), np.array([0, 1, 0]), LABELS, (200, 200))
    moved = boxes + np.array([[1, 0, 0, 0], [0, -3, 0, 0], [0, 0, 0, 0]], np.float32)
    b = replace(a, boxes_xyxy_px=moved, scores=np.array([0.8, 0.85, 0.7], np.float32), head_rows=np.array([0, 1, 1]))
    result = agreement([a], [b])
    assert (result.matched, result.matched_fraction) == (2, 2 / 3)
    assert (result.box_shift_px_p50, result.box_shift_px_max) == (2, 3)
    assert result.box_shift_px_p95 == pytest.approx(2.9, abs=1e-12)  # interpolation of 1 and 3
    assert result.score_shift_max == pytest.approx(0.1, abs=1e-7)  # float32 scores
    assert agreement([b], [a]).matched == 2
    assert agreement([a], [a[:1]]).matched_fraction == 0.5
    assert agreement([a], [b], iou=0.99).matched == 0


def test_the_largest_overlap_is_taken_first() -> None:
    near = np.array([[0, 0, 40, 40], [4, 0, 44, 40]], np.float32)
    a = Detections(near, np.array([0.9, 0.8], np.float32), np.array([0, 0]), LABELS, (200, 200))
    b = a[[1, 0]]
    assert agreement([a], [b]).box_shift_px_max == 0
    assert agreement([a[:1]], [a]).box_shift_px_max == 0


def test_nothing_agrees_with_nothing_and_lengths_must_fit() -> None:
    nothing = Detections.empty(LABELS)
    assert agreement([nothing], [nothing]).matched_fraction == 1
    assert agreement([], []).matched_fraction == 1
    assert agreement([nothing], [random_detections(0, 3)]).matched_fraction == 0
    with pytest.raises(ConfigError) as caught:
        agreement([nothing], [])
    assert str(caught.value) == "agreement of 1 and 0 pictures; expected the same pictures in the same order"


def test_boxes_that_differ_by_rounding_are_the_same_however_thin() -> None:
    """The overlap of thin boxes is that of rounding errors."""
    thin = np.array([[10, 10, 10, 30], [5, 5, 5.000001, 5.000001]], np.float32)
    a = Detections(thin, np.array([0.9, 0.5], np.float32), np.array([0, 1]), LABELS, (200, 200))
    assert agreement([a], [replace(a, boxes_xyxy_px=thin + np.float32(0.004))], 0.75).matched == 2
    assert agreement([a], [replace(a, boxes_xyxy_px=thin + np.float32(0.5))], 0.75).matched == 0
