"""Best-F1 thresholds by brute force; the confusion matrix and the worst pictures by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from score_problems import random_problem, slow_counts

from rapidetr.core.errors import ConfigError
from rapidetr.evaluation import Evaluation, Found, Truths, score


def f1(right: int, false: int, missed: int) -> float:
    return 2 * right / (2 * right + false + missed) if right + false + missed else 0.0


def test_best_thresholds_by_brute_force() -> None:
    for seed in range(25):
        truths, found = random_problem(seed)
        measure = score(truths, found).boxes
        groups = [list(range(len(truths.class_names))), *([k] for k in range(len(truths.class_names)))]
        for i, classes in enumerate(groups):
            if not truths.class_counts[classes].sum():
                assert np.isnan(measure.f1[i])
                continue
            best = max(f1(*slow_counts(truths, found, t, classes)) for t in {0.0, *found.scores})
            assert measure.f1[i] == pytest.approx(best, abs=1e-15)  # one division of whole numbers on each side
            if best == 0:
                assert np.isnan(measure.threshold[i])
                continue
            right, false, missed = slow_counts(truths, found, measure.threshold[i], classes)
            assert f1(right, false, missed) == pytest.approx(best, abs=1e-15)
            assert measure.precision[i] == right / (right + false)
            assert measure.recall[i] == right / (right + missed)


def test_counts_of_the_confusion_matrix_are_those_of_the_threshold() -> None:
    for seed in range(25):
        truths, found = random_problem(seed)
        for threshold in (None, 0.0, 0.3):
            m = score(truths, found, threshold=threshold).boxes
            assert threshold is None or m.shown_above == threshold
            right, false, missed = slow_counts(truths, found, m.shown_above, list(range(len(truths.class_names))))
            off = m.confusion[:-1, :-1].sum() - np.trace(m.confusion)
            assert np.trace(m.confusion) == right
            assert m.confusion[-1].sum() + off == false
            assert m.confusion[:, -1].sum() + off == missed
            np.testing.assert_array_equal(m.confusion[:-1].sum(1), m.objects)
            np.testing.assert_array_equal(m.counts.sum(0), [right, m.confusion[:-1, -1].sum(), m.confusion[-1].sum(), off])


@pytest.fixture
def by_hand() -> tuple[Truths, Found]:
    """Two classes, four pictures: right and doubled; confused; false beside a crowd; nothing at all."""
    box, far = [10.0, 10.0, 30.0, 30.0], [60.0, 60.0, 90.0, 90.0]
    truths = Truths(
        ("cat", "dog"), ("a", "b", "c", "d"), np.array([0, 1, 1, 2]), np.array([0, 0, 1, 1]), np.array([box, box, far, [0, 0, 50, 50]]),
        np.array([False, False, False, True]), np.array([400.0, 400, 900, 2500]),
    )  # fmt: skip
    rows = [
        (0, 0, box, 0.9),  # right
        (0, 0, [11.0, 11, 31, 31], 0.8),  # the same object again: false
        (1, 1, box, 0.7),  # a cat called dog
        (1, 1, far, 0.2),  # right, but below the threshold
        (2, 1, [5.0, 5, 20, 20], 0.9),  # in a crowd of dogs: neither right nor wrong
        (2, 0, [5.0, 5, 20, 20], 0.6),  # a cat there: false
    ]
    images, classes, boxes, scores = (np.array(column) for column in zip(*rows, strict=True))
    return truths, Found(images, classes, boxes, scores)


def test_confusion_by_hand(by_hand: tuple[Truths, Found]) -> None:
    m = score(*by_hand, threshold=0.5).boxes
    #                                cat dog nothing
    assert m.confusion.tolist() == [[1, 1, 0], [0, 0, 1], [2, 0, 0]]
    assert m.counts.tolist() == [[1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert m.image_f1.tolist() == [2 / 3, 0, 0, 1]
    assert m.worst_images().tolist() == [1, 2, 0, 3]
    lower = score(*by_hand, threshold=0.1).boxes
    assert lower.confusion.tolist() == [[1, 1, 0], [0, 1, 0], [2, 0, 0]]
    assert lower.image_f1.tolist() == [2 / 3, 1 / 2, 0, 1]  # a confused object is one missed and one false
    equal = replace(m, counts=np.array([[0, 1, 0, 0], [0, 1, 1, 0], [1, 0, 0, 0]]))
    assert equal.worst_images().tolist() == [1, 0, 2]


def right_of(boxes: list[list[float]], crowd: list[bool], found: list[list[float]]) -> int:
    """Right ones of detections of one class in one picture, best score first; checked against the slow count."""
    n, m = len(boxes), len(found)
    truths = Truths(("cat",), ("a",), np.zeros(n, np.int64), np.zeros(n, np.int64), np.array(boxes), np.array(crowd), np.ones(n))
    detections = Found(np.zeros(m, np.int64), np.zeros(m, np.int64), np.array(found), np.linspace(0.9, 0.8, m))
    right = int(np.trace(score(truths, detections, threshold=0.0).boxes.confusion))
    assert right == slow_counts(truths, detections, 0.0, [0])[0]
    return right


def test_coco_rule_of_matching() -> None:
    whole, upper, lower = [0.0, 0, 40, 40], [0.0, 0, 40, 30], [0.0, 10, 40, 40]
    assert right_of([whole], [False], [[0.0, 0, 40, 20]]) == 1  # an overlap of exactly one half
    assert right_of([whole], [False], [[0.0, 0, 40, 19.99]]) == 0
    assert right_of([upper, [0.0, 0, 100, 100]], [False, True], [whole]) == 1  # an object before a crowd that holds more of it
    assert right_of([upper, lower], [False] * 2, [whole, [0.0, 0, 40, 20]]) == 2  # equal overlaps: the last object
    assert right_of([upper, lower], [False] * 2, [whole, [0.0, 20, 40, 40]]) == 1


def test_limit_keeps_the_best_of_each_image_and_class_in_their_order() -> None:
    rng = np.random.default_rng(0)
    images, classes, scores = rng.integers(0, 3, 90), rng.integers(0, 3, 90), rng.integers(0, 6, 90) / 8
    found = Found(images, classes, rng.random((90, 4)), scores, [{"counts": str(i)} for i in range(90)])
    keep = []
    for image in range(3):
        for c in range(3):
            group = [i for i in range(90) if images[i] == image and classes[i] == c]
            keep += sorted(group, key=lambda i: -scores[i])[:4]
    limited = found.limited(4)
    assert [r["counts"] for r in limited.rles] == [str(i) for i in sorted(keep)]
    np.testing.assert_array_equal(limited.boxes_xyxy_px, found.boxes_xyxy_px[sorted(keep)])
    np.testing.assert_array_equal(limited.scores, scores[sorted(keep)])


def test_an_object_found_only_below_the_threshold_can_still_be_confused() -> None:
    box = np.array([[10.0, 10, 30, 30]])
    truths = Truths(("cat", "dog"), ("a",), np.array([0]), np.array([0]), box, np.array([False]), np.array([400.0]))
    found = Found(np.array([0, 0]), np.array([1, 0]), np.repeat(box, 2, axis=0), np.array([0.9, 0.4]))
    assert score(truths, found, threshold=0.5).boxes.confusion.tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert score(truths, found, threshold=0.1).boxes.confusion.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_threshold_lies_between_scores_even_of_neighboring_floats() -> None:
    box = np.array([[10.0, 10, 30, 30], [100, 100, 130, 130]])
    truths = Truths(("cat",), ("a",), np.array([0]), np.array([0]), box[:1], np.array([False]), np.array([400.0]))
    high = np.float32(0.8)
    step = np.nextafter(high, np.float32(0))
    for upper, lower in ((high, np.float32(0.4)), (high, step), (step, np.nextafter(step, np.float32(0)))):
        found = Found(np.array([0, 0]), np.array([0, 0]), box, np.array([upper, lower], np.float32))
        m = score(truths, found).boxes
        assert lower <= np.float32(m.threshold[0]) < upper
        assert m.precision[0] == m.recall[0] == m.f1[0] == 1
        assert m.confusion.tolist() == [[1, 0], [0, 0]]
    assert score(truths, replace(found, scores=np.array([0.8, 0.4]))).boxes.threshold[0] == pytest.approx(0.6, abs=1e-15)


def test_json_round_trip_and_text(by_hand: tuple[Truths, Found]) -> None:
    evaluation = score(*by_hand, threshold=0.5, notes=("a note",))
    record = evaluation.to_dict()
    text = json.dumps(record, allow_nan=False)
    again = Evaluation.from_dict(json.loads(text))
    assert again.to_dict() == record
    assert again.boxes.confusion.dtype == np.int64
    assert record["boxes"]["metrics"]["AP_large"] is None
    assert np.isnan(again.boxes.metrics["AP_large"])
    table = evaluation.to_text()
    assert table == again.to_text()
    assert table.splitlines()[:3] == ["4 images, 3 objects, 2 classes; at most 100 detections of each image and class", "a note", ""]
    assert "AP_large       -" in table
    assert table.endswith(
        "worst images (boxes, scores above 0.500):\n  b: 0 right, 1 missed, 0 false, 1 confused\n"
        "  c: 0 right, 0 missed, 1 false, 0 confused\n  a: 1 right, 0 missed, 1 false, 0 confused"
    )
    with pytest.raises(ConfigError, match=r"^evaluation: expected a record that Evaluation.to_dict wrote \(KeyError"):
        Evaluation.from_dict({})


def test_masks_have_their_own_figures() -> None:
    truths, found = random_problem(9, masks=True)
    evaluation = score(truths, found)
    again = Evaluation.from_dict(json.loads(json.dumps(evaluation.to_dict())))
    assert evaluation.masks is not None
    assert again.to_dict() == evaluation.to_dict()
    assert evaluation.masks.metrics != evaluation.boxes.metrics
    assert evaluation.to_text().splitlines()[2].split() == ["boxes", "masks"]
    assert score(truths, replace(found, rles=None)).masks is None
