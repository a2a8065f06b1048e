"""What one detection becomes: ids, names, types and keys as the official package gives them."""

from __future__ import annotations

import numpy as np
import pytest

from rapidetr.compat import COCO_CLASS_NAMES, COCO_CLASSES
from rapidetr.compat.results import relabel, row_names, to_official
from rapidetr.core.detections import Detections
from rapidetr.core.labels import LabelSpace
from rapidetr.core.masks import Masks

pytestmark = pytest.mark.filterwarnings("ignore:OpenCV:UserWarning")  # supervision says at import that it runs without it

FINE_TUNED = LabelSpace.contiguous(["a", "b", "c"])


def detections(labels: LabelSpace, rows: list[int], *, masks: bool = False) -> Detections:
    n = len(rows)
    boxes = np.float32([[1, 2, 5, 6]]).repeat(n, 0).reshape(n, 4)
    dense = np.zeros((n, 7, 9), bool)
    dense[:, 2:6, 1:5] = True
    scores = np.linspace(0.9, 0.1, n, dtype=np.float32)
    return Detections(
        boxes, scores, np.array(rows, np.int64), labels, (7, 9), Masks((7, 9), list(Masks.from_dense(dense).counts)) if masks else None
    )


def test_coco_ids_stay_sparse_and_rows_without_a_category_have_an_empty_name() -> None:
    found = to_official(detections(LabelSpace.coco(), [1, 90, 0, 12, 18]), None)
    assert found.class_id.tolist() == [1, 90, 0, 12, 18]
    assert found.data["class_name"].tolist() == ["person", "toothbrush", "", "", "dog"]


def test_the_last_row_of_a_fine_tuned_head_is_the_background() -> None:
    assert row_names(FINE_TUNED) == ["a", "b", "c", "__background__"]
    assert row_names(LabelSpace.contiguous(["a", "b", "c"], head_rows=6)) == ["a", "b", "c", "", "", "__background__"]
    assert row_names(LabelSpace.contiguous(["a", "b", "c"], head_rows=3)) == ["a", "b", "__background__"]  # official precedence
    assert to_official(detections(FINE_TUNED, [3, 0]), None).data["class_name"].tolist() == ["__background__", "a"]


@pytest.mark.parametrize("rows", [[2, 0], []])
def test_types_shapes_and_keys(rows: list[int]) -> None:
    n, picture = len(rows), np.zeros((7, 9, 3), np.uint8)
    found = to_official(detections(FINE_TUNED, rows, masks=True), picture)
    assert len(found) == n
    assert (found.xyxy.dtype, found.xyxy.shape) == (np.float32, (n, 4))
    assert (found.confidence.dtype, found.confidence.shape) == (np.float32, (n,))
    assert (found.class_id.dtype, found.class_id.shape) == (np.int64, (n,))
    assert type(found.mask) is np.ndarray
    assert (found.mask.dtype, found.mask.shape) == (bool, (n, 7, 9))
    assert found.mask.sum() == n * 16
    assert list(found.data) == ["source_shape", "class_name"]
    assert (found.data["class_name"].dtype, found.data["class_name"].shape) == (object, (n,))
    assert (found.data["source_shape"].dtype, found.data["source_shape"].tolist()) == (np.int64, [[7, 9]] * n)
    assert found.data["source_shape"].shape == (n, 2)
    assert found.metadata["source_image"] is picture
    assert found.tracker_id is None


def test_detection_models_have_no_masks_and_the_picture_can_be_left_out() -> None:
    found = to_official(detections(FINE_TUNED, [0]), None)
    assert found.mask is None
    assert found.metadata == {}


def test_float_pictures_come_back_as_uint8() -> None:
    picture = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    found = to_official(detections(FINE_TUNED, [0]), (picture / 255).astype(np.float32))
    assert found.metadata["source_image"].dtype == np.uint8
    assert np.array_equal(found.metadata["source_image"], picture)


def test_relabel_follows_the_official_rule() -> None:
    coco = LabelSpace.coco()
    assert relabel(coco, 90) == coco
    assert relabel(coco, 100) == LabelSpace.coco(101)
    assert relabel(coco, 85).dataset_ids[-2:] == (84, 85)
    assert relabel(coco, 80) == LabelSpace.contiguous(COCO_CLASS_NAMES)
    assert relabel(coco, 3).names == ("person", "bicycle", "car")
    assert relabel(FINE_TUNED, 2) == LabelSpace.contiguous(["a", "b"])
    assert relabel(FINE_TUNED, 5) == LabelSpace.contiguous(["a", "b", "c"], head_rows=6)


def test_coco_tables() -> None:
    assert (len(COCO_CLASSES), COCO_CLASSES[1], COCO_CLASSES[90]) == (80, "person", "toothbrush")
    assert COCO_CLASS_NAMES[11] == "stop sign"
