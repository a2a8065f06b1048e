"""From raw outputs to detections: golden values of the official post-processing, a full stable sort as oracle, the options."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rapidetr.core.clock import StageClock
from rapidetr.core.detections import Detections
from rapidetr.core.errors import ConfigError
from rapidetr.core.labels import LabelSpace
from rapidetr.core.outputs import Geometry, RawOutput
from rapidetr.pixels.select import best, select, sigmoid, suppress

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
CASES = [case for case in json.loads((GOLDEN / "golden_index.json").read_text()) if case != "tiny_kp" and not case.endswith("_train")]
PAIR = LabelSpace(("cat", "dog"), (5, 9), (1, 2), 4)  # rows 0 and 3 belong to no class


def plain_labels(rows: int) -> LabelSpace:
    return LabelSpace.contiguous([f"row {i}" for i in range(rows)], head_rows=rows)


def raw_of(scores: np.ndarray, boxes: np.ndarray | None = None) -> RawOutput:
    """One picture whose scores [Q, C] are given; boxes in a row unless told."""
    q = len(scores)
    if boxes is None:
        boxes = np.stack([(np.arange(q) + 0.5) / q, np.full(q, 0.5), np.full(q, 0.5 / q), np.full(q, 0.5)], axis=1)
    return RawOutput(np.log(scores / (1 - scores)).astype(np.float32)[None], boxes.astype(np.float32)[None])


def one(scores: list[list[float]], **options: object) -> Detections:
    return select(raw_of(np.array(scores)), [Geometry((100, 200))], PAIR, **options)[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("case", CASES)
def test_golden_postprocessing(case: str) -> None:
    with np.load(GOLDEN / f"golden_{case}.npz") as file:
        a = dict(file)
    count, rows = a["post_scores"].shape[1], a["pred_logits"].shape[2]
    geometries = [Geometry((int(h), int(w))) for h, w in a["post_target_size"]]
    found = select(RawOutput(a["pred_logits"], a["pred_boxes"]), geometries, plain_labels(rows), threshold=0, max_detections=count)
    assert len(found) == len(geometries)
    for i, one in enumerate(found):
        assert np.array_equal(one.head_rows, a["post_labels"][i])
        assert np.abs(one.scores - a["post_scores"][i]).max() <= 1e-6  # exp of numpy and of torch differ in the last place
        assert np.abs(one.boxes_xyxy_px - a["post_boxes"][i]).max() <= 1e-4  # float32 at up to 700 pixels has steps of 6e-5
        assert one.image_hw == geometries[i].image_hw
        assert one.boxes_xyxy_px.dtype == one.scores.dtype == np.float32


@pytest.mark.parametrize(("case", "stored_exactly"), [("tiny_seg", 3), ("seg-nano_312", 0)])
def test_golden_masks(case: str, stored_exactly: int) -> None:
    with np.load(GOLDEN / f"golden_{case}.npz") as file:
        a = dict(file)
    count, rows = a["post_scores"].shape[1], a["pred_logits"].shape[2]
    logits = a["pred_masks_f16"].astype(np.float32)
    logits[:, :3] = a["pred_masks_first3"]
    geometries = [Geometry((int(h), int(w))) for h, w in a["post_target_size"]]
    found = select(RawOutput(a["pred_logits"], a["pred_boxes"], logits), geometries, plain_labels(rows), threshold=0, max_detections=count)
    exact = 0
    for i, one in enumerate(found):
        flat = np.argsort(-torch.from_numpy(a["pred_logits"][i]).sigmoid().numpy().reshape(-1), kind="stable")[:count]
        expected = np.unpackbits(a["post_masks_first10_bits"][i], axis=-1)[:, :, : geometries[i].image_hw[1]].astype(bool)
        assert one.masks is not None
        for k in range(10):
            different = (one.masks[k] != expected[k]).mean()
            assert different <= 0.002  # half precision in the file moves outlines: values within 5e-4 of zero change sides
            if flat[k] // rows < 3:  # stored in float32
                assert different == 0
                exact += 1
        # the file holds shares of the picture; the mean over all pixels moves by what the half precision moves
        assert np.abs(one.masks.areas / np.prod(geometries[i].image_hw) - a["post_masks_area"][i]).max() <= 0.002
    assert exact == stored_exactly


def test_sigmoid_is_that_of_torch() -> None:
    logits = np.concatenate([np.linspace(-110, 110, 200_001), [0, -0.0, 17, 88.7, -88.7, 1e30, -1e30]]).astype(np.float32)
    expected = torch.from_numpy(logits).sigmoid().numpy()
    assert np.abs(sigmoid(logits) - expected).max() <= 1e-6
    assert np.array_equal(sigmoid(logits) == 1, expected == 1)  # where scores saturate, ties are decided by the index
    assert sigmoid(np.float32([-100, 100])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("levels", [1, 3, 50, 100_000])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 1.0])
def test_best_is_a_stable_sort_cut_and_filtered(levels: int, threshold: float) -> None:
    rng = np.random.default_rng(levels)
    for size in (1, 7, 300, 5000):
        scores = (rng.integers(0, levels + 1, size) / levels).astype(np.float32)  # few levels make many ties
        for count in (1, 5, 300, size):
            order = np.argsort(-scores, kind="stable")[:count]
            assert np.array_equal(best(scores, count, threshold), order[scores[order] > threshold])


def test_the_threshold_is_strict() -> None:
    assert (
        len(select(RawOutput(np.zeros((1, 3, 4), np.float32), np.zeros((1, 3, 4), np.float32)), [Geometry((9, 9))], PAIR, threshold=0.5)[0])
        == 0
    )


def test_boxes_are_clamped_and_never_inside_out() -> None:
    boxes = np.float32([[0.5, 0.5, 0.2, 0.4], [0.0, 1.0, 0.5, 0.5], [0.5, 0.5, -1, -1], [3, -3, 1, 1]])
    found = select(raw_of(np.linspace(0.9, 0.6, 4)[:, None] * [[1e-9, 1, 1e-9, 1e-9]], boxes), [Geometry((100, 200))], PAIR)[0]
    expected = [[80, 30, 120, 70], [0, 75, 50, 100], [100, 50, 100, 50], [200, 0, 200, 0]]
    assert np.abs(found.boxes_xyxy_px - expected).max() < 1e-4  # float32 at 200 pixels


def test_tiles_report_in_pixels_of_the_whole_picture() -> None:
    boxes, masks = np.float32([[[0.5, 0.5, 1, 2]]]), np.ones((1, 1, 4, 4), np.float32)
    raw = RawOutput(np.float32([[[-9, 9, -9, -9]]]), boxes, masks)
    found = select(raw, [Geometry((20, 30), (40, 50), (100, 200))], PAIR)[0]
    assert found.boxes_xyxy_px.tolist() == [[50, 40, 80, 60]]
    assert found.image_hw == (100, 200)
    assert found.masks is not None
    assert found.masks.size_hw == (100, 200)
    assert found.masks.crop(0)[0] == (40, 50)
    assert found.masks.areas.tolist() == [600]


def test_rows_without_a_class_take_their_place_in_the_top_and_are_then_dropped_and_counted() -> None:
    scores = [[0.9, 0.8, 0.1, 0.7], [0.6, 0.2, 0.55, 0.1]]
    top = one(scores, max_detections=3)  # 0.9 (no class), 0.8 (cat), 0.7 (no class): the dog is not among the top 3
    assert (top.class_names, top.unnamed_dropped) == (["cat"], 2)
    every = one(scores, max_detections=8)
    assert (every.class_names, every.unnamed_dropped) == (["cat", "dog"], 3)
    assert every.dataset_ids.tolist() == [5, 9]
    unnamed = one(scores, include_unnamed=True, max_detections=8)
    assert (unnamed.head_rows.tolist(), unnamed.unnamed_dropped) == ([0, 1, 3, 0, 2], 0)
    assert unnamed.class_ids.tolist() == [-1, 0, -1, -1, 1]


def test_as_many_detections_as_queries_unless_told() -> None:
    scores = [[0.1, 0.9, 0.8, 0.1], [0.1, 0.7, 0.6, 0.1]]
    assert len(one(scores)) == 2
    assert len(one(scores, max_detections=3)) == 3
    assert len(one(scores, max_detections=99)) == 4


def test_classes_are_filtered_after_the_top() -> None:
    scores = [[0.1, 0.9, 0.8, 0.1], [0.1, 0.7, 0.6, 0.1]]
    assert np.allclose(one(scores, classes=["dog"]).scores, [0.8])
    assert np.allclose(one(scores, classes="dog", max_detections=8).scores, [0.8, 0.6])
    assert np.allclose(one(scores, classes=[0], max_detections=8, include_unnamed=True).scores, [0.9, 0.7])
    with pytest.raises(ConfigError, match=r"^unknown class 'cow'; this model knows: cat, dog$"):
        one(scores, classes=["cow"])


def test_one_label_per_query_keeps_the_best_named_one() -> None:
    scores = [[0.95, 0.9, 0.8, 0.1], [0.1, 0.6, 0.7, 0.1]]
    found = one(scores, one_label_per_query=True, max_detections=8)
    assert list(zip(found.class_names, found.scores.astype(float).round(2).tolist(), strict=True)) == [("cat", 0.9), ("dog", 0.7)]


def greedy(boxes: np.ndarray, rows: np.ndarray, limit: float) -> list[int]:
    """Textbook suppression with areas counted on the pixel grid (corners are integers)."""
    kept: list[int] = []
    for i in range(len(boxes)):
        pixels = {(x, y) for x in range(boxes[i][0], boxes[i][2]) for y in range(boxes[i][1], boxes[i][3])}
        for j in kept:
            others = {(x, y) for x in range(boxes[j][0], boxes[j][2]) for y in range(boxes[j][1], boxes[j][3])}
            if rows[i] == rows[j] and len(pixels & others) > limit * len(pixels | others):
                break
        else:
            kept.append(i)
    return kept


@pytest.mark.parametrize("limit", [0.0, 0.3, 0.55])
def test_suppression_equals_a_slow_one(limit: float) -> None:
    rng = np.random.default_rng(1)
    corner, rows = rng.integers(0, 12, (60, 2)), rng.integers(0, 3, 60)
    boxes = np.concatenate([corner, corner + rng.integers(1, 9, (60, 2))], axis=1)
    assert np.flatnonzero(suppress(boxes.astype(np.float32), rows, limit)).tolist() == greedy(boxes, rows, limit)


def test_nms_works_within_a_class_and_keeps_the_better_one() -> None:
    boxes = np.float32([[0.5, 0.5, 0.4, 0.4], [0.51, 0.5, 0.4, 0.4], [0.5, 0.5, 0.4, 0.4]])
    raw = raw_of(np.array([[0.01, 0.7, 0.01, 0.01], [0.01, 0.8, 0.01, 0.01], [0.01, 0.01, 0.6, 0.01]]), boxes)
    assert len(select(raw, [Geometry((50, 50))], PAIR)[0]) == 3
    found = select(raw, [Geometry((50, 50))], PAIR, nms=0.5)[0]
    assert list(zip(found.class_names, found.scores.astype(float).round(2).tolist(), strict=True)) == [("cat", 0.8), ("dog", 0.6)]


def test_masks_belong_to_the_detections_that_stay() -> None:
    masks = np.full((1, 3, 4, 4), -1, np.float32)
    for q in range(3):
        masks[0, q, :, : q + 1] = 1
    scores = np.array([[0.01, 0.7, 0.01, 0.01], [0.9, 0.01, 0.01, 0.01], [0.01, 0.01, 0.8, 0.01]])
    raw, clock = raw_of(scores), StageClock(iter(range(100)).__next__)
    found = select(RawOutput(raw.logits, raw.boxes, masks), [Geometry((4, 4))], PAIR, resize_filter="bilinear", clock=clock)[0]
    assert found.class_names == ["dog", "cat"]  # query 2, then query 0; query 1 has no class
    assert found.masks is not None
    assert found.masks.areas.tolist() == [12, 4]
    assert found.resize_filter == "bilinear"
    assert clock.seconds == {"select": 1, "masks": 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 50}, "threshold is 50; expected a score between 0 and 1"),
        ({"threshold": float("nan")}, "threshold is nan; expected a score between 0 and 1"),
        ({"nms": -0.1}, "nms is -0.1; expected an overlap between 0 and 1"),
        ({"max_detections": 0}, "max_detections is 0; expected a whole number of at least 1"),
        ({"max_detections": 1.5}, "max_detections is 1.5; expected a whole number of at least 1"),
        ({"nms": "a"}, "nms is 'a'; expected an overlap between 0 and 1"),
    ],
)
def test_arguments_out_of_range(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError) as problem:
        one([[0.1, 0.9, 0.8, 0.1]], **options)
    assert str(problem.value) == message


def test_outputs_that_do_not_fit() -> None:
    raw = raw_of(np.full((2, 4), 0.3))
    with pytest.raises(ConfigError, match=r"^the network returned 1 pictures for 2 geometries$"):
        select(raw, [Geometry((9, 9))] * 2, PAIR)
    with pytest.raises(ConfigError, match=r"^the class head has 4 rows, but the labels describe 91$"):
        select(raw, [Geometry((9, 9))], LabelSpace.coco())
    for bad in (np.nan, np.inf):
        broken = RawOutput(raw.logits, np.where(np.arange(4) == 2, bad, raw.boxes))
        with pytest.raises(ConfigError, match=r"^the network returned values that are not finite; try float32, or check the weights$"):
            select(broken, [Geometry((9, 9))], PAIR)
