"""Average precision and recall against pycocotools."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from score_problems import pycocotools_evaluator, random_problem, run_pycocotools, xywh

from rapidetr.core.errors import BackendMissing, ConfigError
from rapidetr.core.masks import Masks
from rapidetr.data import read_dataset
from rapidetr.evaluation import Found, Truths, score
from rapidetr.evaluation.evaluate import as_truths

METRICS = ["AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR_1", "AR_10", "AR_max", "AR_small", "AR_medium", "AR_large"]


def values(measure) -> np.ndarray:
    return np.array(list(measure.metrics.values()))


def known(stats: np.ndarray) -> np.ndarray:
    return np.where(np.asarray(stats) == -1, np.nan, stats)


def check_problem(seed: int, masks: bool) -> None:
    truths, found = random_problem(seed, masks=masks)
    ours, reference = score(truths, found), pycocotools_evaluator(truths, found, masks)
    measure = ours.masks if masks else ours.boxes
    assert list(measure.metrics) == METRICS
    check_equal(values(measure), known(reference.stats), seed)
    precision = known(reference.eval["precision"])[..., 0, -1]
    check_equal(measure.curves, precision[0].T, seed)
    check_equal(measure.ap, precision.mean((0, 1)), seed)
    check_equal(measure.ap50, precision[0].mean(0), seed)


def check_equal(ours: np.ndarray, reference: np.ndarray, seed: int = 0) -> None:
    """1e-12: the two add and divide in another order; a single other match changes the last figure by more than 1e-6."""
    np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-12, err_msg=f"seed {seed}")


def test_boxes_equal_pycocotools() -> None:
    for seed in range(20):
        check_problem(seed, masks=False)


def test_masks_equal_pycocotools() -> None:
    for seed in range(10):
        check_problem(seed, masks=True)


@pytest.mark.slow
def test_many_problems_equal_pycocotools() -> None:
    for seed in range(1000, 1300):
        check_problem(seed, masks=seed % 2 == 0)


def test_limit_of_detections_is_per_image_and_class() -> None:
    truths, found = random_problem(3)
    repeated = Found(*(np.repeat(c, 8, axis=0) for c in (found.images, found.class_ids, found.boxes_xyxy_px, found.scores)))
    for limit in (10, 12, 500):
        reference = pycocotools_evaluator(truths, repeated, False, limit)
        ours = score(truths, repeated, max_dets=limit)
        assert ours.max_dets == limit
        check_equal(values(ours.boxes)[1:], known(reference.stats[1:]))
        precision = known(reference.eval["precision"][..., 0, -1])  # pycocotools tells AP itself only for 100
        check_equal(ours.boxes.metrics["AP"], np.nanmean(precision))
    # thresholds, confusion and counts see no more detections than AP does
    few, cut, many = (
        score(truths, f, max_dets=d, threshold=0.0).boxes for f, d in ((repeated, 10), (repeated.limited(10), 500), (repeated, 500))
    )
    np.testing.assert_array_equal(few.confusion, cut.confusion)
    assert few.confusion.sum() < many.confusion.sum()


def test_no_detections_score_zero_and_no_objects_score_nothing() -> None:
    truths, found = random_problem(1)
    nothing = Found(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0))
    measure = score(truths, nothing).boxes
    assert measure.metrics["AP"] == measure.metrics["AR_max"] == measure.f1[0] == 0
    assert np.isnan(measure.threshold[0])
    assert measure.shown_above == 0.5
    bare = Truths(
        truths.class_names,
        truths.image_names,
        np.zeros(0, np.int64),
        np.zeros(0, np.int64),
        np.zeros((0, 4)),
        np.zeros(0, bool),
        np.zeros(0),
    )
    measure = score(bare, found).boxes
    assert np.isnan(values(measure)).all()
    assert np.isnan(np.r_[measure.ap, measure.ap50, measure.f1, measure.threshold, measure.precision, measure.recall]).all()
    assert measure.confusion[:-1].sum() == 0
    assert measure.confusion[-1].sum() == (found.scores > 0.5).sum() == measure.counts[:, 2].sum() > 0


def test_classes_without_objects_enter_no_mean() -> None:
    truths, found = random_problem(5, unique=True)
    more = score(replace(truths, class_names=(*truths.class_names, "never seen")), found).boxes
    less = score(truths, found).boxes
    np.testing.assert_array_equal(values(more), values(less))
    np.testing.assert_array_equal(more.f1[:-1], less.f1)
    assert np.isnan([more.ap[-1], more.ap50[-1], more.f1[-1], *more.curves[-1]]).all()
    assert more.objects[-1] == 0


def test_order_of_images_and_objects_does_not_matter() -> None:
    """Without ties: equal scores of two images are taken in the order of the images, as in pycocotools."""
    rng = np.random.default_rng(0)
    for seed in range(10):
        truths, found = random_problem(seed, unique=True)
        number = rng.permutation(len(truths.image_names))
        t, f = rng.permutation(len(truths.images)), rng.permutation(len(found.images))
        columns = (getattr(truths, c)[t] for c in ("class_ids", "boxes_xyxy_px", "crowd", "areas"))
        shuffled = Truths(truths.class_names, truths.image_names, number[truths.images[t]], *columns)
        moved = Found(number[found.images[f]], *(getattr(found, c)[f] for c in ("class_ids", "boxes_xyxy_px", "scores")))
        a, b = score(truths, found).boxes, score(shuffled, moved).boxes
        np.testing.assert_array_equal(values(a), values(b))
        np.testing.assert_array_equal(a.confusion, b.confusion)
        np.testing.assert_array_equal(a.counts, b.counts[number])
        np.testing.assert_array_equal(a.threshold, b.threshold)


def test_an_empty_image_changes_nothing() -> None:
    truths, found = random_problem(2)
    longer = replace(truths, image_names=("empty", *truths.image_names), images=truths.images + 1)
    a, b = score(truths, found).boxes, score(longer, replace(found, images=found.images + 1)).boxes
    np.testing.assert_array_equal(values(a), values(b))
    assert b.image_f1[0] == 1
    assert b.worst_images()[-1] == 0 or b.image_f1[b.worst_images()[-1]] == 1


@pytest.mark.slow
def test_real_annotations_equal_pycocotools(shared: Path) -> None:
    """Polygons, crowds and category ids with gaps; the reference reads the file itself and draws its own polygons."""
    dataset = read_dataset(shared / "data" / "coco_real", "train")
    data = json.loads(next((shared / "data" / "coco_real" / "train").glob("_annotations*.json")).read_text())
    masks = [record.masks() for record in dataset.images]
    truths = as_truths(dataset.images, dataset.labels, [rle for m in masks for rle in m.rle()])
    rng = np.random.default_rng(0)
    order = rng.permutation(len(truths.images))[: len(truths.images) * 4 // 5]
    boxes = truths.boxes_xyxy_px[order].astype(np.float64)
    boxes += rng.normal(0, 0.1, boxes.shape) * np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    classes = np.where(rng.random(len(order)) < 0.9, truths.class_ids[order], 0)
    sizes = [m.size_hw for m in masks]
    moved = []
    for i in order:
        m = Masks.from_rle([truths.rles[i]], sizes[truths.images[i]])
        moved += Masks.from_dense(np.roll(m.dense(), rng.integers(-3, 4, 2), (1, 2))).rle()
    scores = rng.random(len(order))
    ours = score(truths, Found(truths.images[order], classes, boxes, scores, moved))
    ids = [r.image_id for r in dataset.images]
    shared_keys = [
        {"image_id": ids[truths.images[i]], "category_id": dataset.labels.dataset_ids[c], "score": float(s)}
        for i, c, s in zip(order, classes, scores, strict=True)
    ]
    found_boxes = [{**k, "bbox": xywh(b)} for k, b in zip(shared_keys, boxes, strict=True)]
    found_masks = [{**k, "segmentation": m} for k, m in zip(shared_keys, moved, strict=True)]
    check_equal(values(ours.boxes), run_pycocotools(data, found_boxes, False).stats)
    check_equal(values(ours.masks), run_pycocotools(data, found_masks, True).stats)
    assert 0.05 < ours.boxes.metrics["AP"] < 0.9
    assert 0.05 < ours.masks.metrics["AP"] < 0.95


def test_without_the_library_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(BackendMissing) as caught:
        score(*random_problem(0))
    assert str(caught.value) == "evaluation needs faster-coco-eval; install it with: pip install 'rapidetr[eval]'"


def test_messages() -> None:
    truths, found = random_problem(1)
    with pytest.raises(ConfigError) as caught:
        score(truths, found, max_dets=9)
    assert str(caught.value) == "max_dets is 9; expected at least 10"
    with pytest.raises(ConfigError) as caught:
        score(truths, replace(found, images=found.images + 100))
    low, high, last = found.images.min() + 100, found.images.max() + 100, len(truths.image_names) - 1
    assert str(caught.value) == f"detections: picture numbers run from {low} to {high}; expected 0 to {last}"
    with pytest.raises(ConfigError) as caught:
        score(truths, replace(found, scores=found.scores + 1))
    assert str(caught.value) == "detections: some scores are not numbers from 0 to 1"
    with pytest.raises(ConfigError) as caught:
        replace(truths, class_names=())
    images = len(truths.image_names)
    assert str(caught.value) == f"ground truth has 0 classes and {images} pictures; expected some of both"
    with pytest.raises(ConfigError, match=r"ground truth: .*expected one row for each object"):
        replace(truths, areas=truths.areas[1:])
    with pytest.raises(ConfigError) as caught:
        score(truths, replace(found, boxes_xyxy_px=found.boxes_xyxy_px * np.nan))
    assert str(caught.value) == "detections: some boxes are not finite numbers"
