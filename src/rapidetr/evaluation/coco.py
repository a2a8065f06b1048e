"""COCO's average precision and overlaps through faster-coco-eval (Apache-2.0), which gives pycocotools' numbers, faster."""

from __future__ import annotations

from itertools import repeat
from typing import Any

import numpy as np

from rapidetr.core.errors import BackendMissing
from rapidetr.evaluation.objects import Found, Truths, boxes_xywh


def load_library() -> Any:
    """The module faster_coco_eval; BackendMissing where it is not installed."""
    try:
        import faster_coco_eval
    except ImportError:
        raise BackendMissing("evaluation needs faster-coco-eval; install it with: pip install 'rapidetr[eval]'") from None
    return faster_coco_eval


def accumulate(truths: Truths, found: Found, max_dets: int, masks: bool) -> tuple[np.ndarray, np.ndarray]:
    """(precision [10, 101, K, 4, 3], recall [10, K, 4, 3]) as COCOeval accumulates them; -1 where a class has no objects.

    Axes: IoU 0.50..0.95, recall 0..1, class, size (all, small, medium, large), detections per picture and class (1, 10,
    `max_dets`).
    """
    library = load_library()
    kind = "segm" if masks else "bbox"
    sides = [_as_coco(library, truths, part, masks) for part in (truths, found)]
    evaluator = library.COCOeval_faster(*sides, kind, rle_iou_max_workers=1)
    evaluator.params.maxDets = [1, 10, max_dets]
    evaluator.evaluate()
    evaluator.accumulate()
    return evaluator.eval["precision"], evaluator.eval["recall"]


def _as_coco(library: Any, truths: Truths, objects: Truths | Found, masks: bool) -> Any:
    """A clean in-memory COCO: ids count from 1, because an annotation with id 0 would count as not found."""
    data = library.COCO()
    data.dataset = {
        "images": [{"id": i + 1, "height": 0, "width": 0} for i in range(len(truths.image_names))],  # run lengths know their size
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(truths.class_names)],
        "annotations": _annotations(library, objects, masks),
    }
    data.createIndex()
    return data


def _annotations(library: Any, objects: Truths | Found, masks: bool) -> list[dict[str, Any]]:
    boxes = boxes_xywh(objects.boxes_xyxy_px)
    if isinstance(objects, Truths):
        areas, extra, values = objects.areas, "iscrowd", objects.crowd.astype(int).tolist()
    else:
        areas, extra, values = boxes[:, 2] * boxes[:, 3], "score", objects.scores.tolist()
        if masks and objects.rles:
            areas = library.mask.area(objects.rles)
    rows = zip(
        (objects.images + 1).tolist(), (objects.class_ids + 1).tolist(), boxes.tolist(), np.asarray(areas).tolist(),
        values, (masks and objects.rles) or repeat(None), strict=False,
    )  # fmt: skip
    return [
        {"id": i, "image_id": image, "category_id": category, "bbox": box, "area": area, extra: value, "segmentation": rle}
        for i, (image, category, box, area, value, rle) in enumerate(rows, 1)
    ]


def overlaps(found: Any, truths: Any, crowd: np.ndarray) -> np.ndarray:
    """IoU float64 [N, M] of boxes (x, y, width, height, float64) or of lists of run-length records; with a crowd: the part of
    the detection that lies in it."""
    return np.asarray(load_library().mask.iou(found, truths, crowd.astype(int).tolist()), np.float64).reshape(len(found), len(truths))
