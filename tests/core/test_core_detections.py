"""What was found in one picture: indexing, filtering, joining, saying."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from rapidetr.core.detections import Detections
from rapidetr.core.errors import ConfigError
from rapidetr.core.labels import LabelSpace
from rapidetr.core.masks import Masks

LABELS = LabelSpace(("cat", "dog"), (17, 18), (1, 3), 5)


def found(scores: list[float], rows: list[int], *, masks: bool = True, **other: Any) -> Detections:
    n = len(scores)
    boxes = np.arange(4 * n, dtype=np.float32).reshape(n, 4)
    dense = np.zeros((n, 6, 8), bool)
    dense[np.arange(n), 0, np.arange(n)] = True  # mask i holds pixel i of the first row
    held = Masks.from_dense(dense) if masks else None
    return Detections(boxes, np.float32(scores), np.array(rows, np.int64), LABELS, (6, 8), masks=held, **other)


FOUR = found([0.9, 0.7, 0.7, 0.2], [1, 3, 0, 1], source="street.jpg")


def same(one: Detections, keep: list[int]) -> bool:
    assert one.masks is not None
    assert FOUR.masks is not None
    return (
        (one.boxes_xyxy_px == FOUR.boxes_xyxy_px[keep]).all()
        and (one.scores == FOUR.scores[keep]).all()
        and (one.head_rows == FOUR.head_rows[keep]).all()
        and (one.masks.dense() == FOUR.masks.dense()[keep]).all()
        and (one.labels, one.image_hw, one.source) == (FOUR.labels, FOUR.image_hw, FOUR.source)
    )


def test_class_identity() -> None:
    assert FOUR.class_ids.tolist() == [0, 1, -1, 0]
    assert FOUR.class_names == ["cat", "dog", "", "cat"]
    assert FOUR.dataset_ids.tolist() == [17, 18, -1, 17]
    assert FOUR.class_ids.dtype == FOUR.dataset_ids.dtype == np.int64


@pytest.mark.parametrize(
    ("index", "keep"),
    [
        (0, [0]), (-1, [3]), (np.int64(2), [2]), (slice(1, 3), [1, 2]), (slice(None, None, -1), [3, 2, 1, 0]), ([3, 0, 0], [3, 0, 0]),
        ([], []), (np.array([False, True, False, True]), [1, 3]), ([True, False, False, False], [0]), (FOUR.scores > 0.5, [0, 1, 2]),
        (np.zeros(4, bool), []),
    ],
)  # fmt: skip
def test_indexing_always_gives_detections(index: Any, keep: list[int]) -> None:
    one = FOUR[index]
    assert type(one) is Detections
    assert len(one) == len(keep)
    assert same(one, keep)


@pytest.mark.parametrize("index", [4, -5, [9], [True], "cat"])
def test_indices_outside_are_refused(index: Any) -> None:
    with pytest.raises(IndexError):
        FOUR[index]


def test_iteration_gives_detections_of_one() -> None:
    assert [len(one) for one in FOUR] == [1, 1, 1, 1]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "keep"),
    [
        ({"classes": ["dog"]}, [1]), ({"classes": "cat"}, [0, 3]), ({"classes": 1}, [1]), ({"classes": np.int64(1)}, [1]),
        ({"classes": np.array([0, 1])}, [0, 1, 3]), ({"classes": []}, []), ({"threshold": 0.2}, [0, 1, 2]), ({}, [0, 1, 2, 3]),
        ({"classes": ["cat"], "threshold": 0.5}, [0]),
    ],
)  # fmt: skip
def test_filter(options: dict[str, Any], keep: list[int]) -> None:
    assert same(FOUR.filter(**options), keep)


def test_filter_threshold_is_exclusive_in_float32() -> None:
    assert len(FOUR.filter(threshold=float(FOUR.scores[1]))) == 1


def test_filter_names_unknown_classes() -> None:
    with pytest.raises(ConfigError, match=r"^unknown class 'cow'; this model knows: cat, dog$"):
        FOUR.filter(classes=["cow"])


def test_concatenate_is_best_first_with_ties_in_order() -> None:
    first, second = found([0.8, 0.5], [1, 1], unnamed_dropped=2), found([0.9, 0.8, 0.5], [3, 3, 3], unnamed_dropped=1)
    both = Detections.concatenate([first, second])
    assert both.scores.tolist() == np.float32([0.9, 0.8, 0.8, 0.5, 0.5]).tolist()
    assert both.head_rows.tolist() == [3, 1, 3, 1, 3]
    assert both.unnamed_dropped == 3
    assert both.masks is not None
    assert both.masks.dense()[:, 0].argmax(1).tolist() == [0, 0, 1, 1, 2]
    assert both.boxes_xyxy_px[:, 0].tolist() == [0, 0, 4, 4, 8]


def test_concatenate_keeps_masks_when_a_part_without_detections_has_none() -> None:
    nothing = Detections.empty(LABELS, (6, 8))
    for parts in ([FOUR, nothing], [nothing, FOUR]):
        both = Detections.concatenate(parts)
        assert both.masks == FOUR.masks
    assert Detections.concatenate([nothing, nothing]).masks is None
    with pytest.raises(ConfigError, match=r"^detections: 5 scores, .*, 4 masks; expected one of each$"):
        Detections.concatenate([FOUR, found([0.5], [1], masks=False)])


def test_repr_counts_what_was_found() -> None:
    assert repr(FOUR) == "Detections(street.jpg 6x8: 2 cat, 1 dog, 1 ?)"
    assert repr(FOUR[:0]) == "Detections(street.jpg 6x8: nothing)"
    assert repr(Detections.empty(LABELS, error="cut off")) == "Detections(image 0x0: cut off)"


def test_empty() -> None:
    nothing = Detections.empty(LABELS, (3, 4), source="a.png")
    assert (len(nothing), nothing.boxes_xyxy_px.shape, nothing.source) == (0, (0, 4), "a.png")
    assert nothing.class_ids.dtype == nothing.dataset_ids.dtype == np.int64
    assert nothing.class_names == []
    assert len(nothing[nothing.scores > 0.5]) == 0


def test_detections_pickle() -> None:
    assert FOUR.class_ids.tolist() == [0, 1, -1, 0]  # the cached table of the labels travels, too
    assert same(pickle.loads(pickle.dumps(FOUR)), [0, 1, 2, 3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes_xyxy_px": np.zeros((3, 4))}, "detections: 4 scores, boxes (3, 4), rows (4,), 4 masks; expected one of each"),
        ({"head_rows": np.zeros((4, 1))}, "detections: 4 scores, boxes (4, 4), rows (4, 1), 4 masks; expected one of each"),
        ({"masks": FOUR.masks[:2]}, "detections: 4 scores, boxes (4, 4), rows (4,), 2 masks; expected one of each"),  # type: ignore[index]
        ({"image_hw": (8, 6)}, "detections: masks are of a picture of (6, 8), expected (8, 6)"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(change: dict[str, Any], message: str) -> None:
    parts = {name: getattr(FOUR, name) for name in ("boxes_xyxy_px", "scores", "head_rows", "labels", "image_hw", "masks")}
    with pytest.raises(ConfigError) as caught:
        Detections(**{**parts, **change})
    assert str(caught.value) == message
