"""Random ground truth and detections with ties, crowds and empties, and the slow answers to compare with."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rapidetr.core.masks import Masks
from rapidetr.evaluation import Found, Truths

SIDE = 200


def random_problem(seed: int, *, masks: bool = False, unique: bool = False) -> tuple[Truths, Found]:
    """Up to 8 images and 5 classes; whole or half pixels and coarse scores, so that overlaps and scores tie, unless `unique`."""
    rng = np.random.default_rng(seed)
    num_images, num_classes = int(rng.integers(1, 9)), int(rng.integers(1, 6))
    n, extra = int(rng.integers(0, 30)), int(rng.integers(0, 40))
    images, classes = rng.integers(0, num_images, n), rng.integers(0, num_classes, n)
    boxes = _boxes(rng, n, unique)
    copies = rng.integers(0, n, int(rng.integers(0, 60))) if n else np.zeros(0, np.int64)
    near = boxes[copies] + (rng.normal(0, 6, (len(copies), 4)) if unique else rng.integers(-4, 5, (len(copies), 4)) * 2)
    found_boxes = np.clip(np.r_[_order(near), _boxes(rng, extra, unique)], 0, SIDE)
    found_classes = np.r_[np.where(rng.random(len(copies)) < 0.8, classes[copies], num_classes - 1), rng.integers(0, num_classes, extra)]
    scores = rng.random(len(found_boxes)) if unique else rng.integers(0, 12, len(found_boxes)) / 16
    names = tuple(f"class {i}" for i in range(num_classes)), tuple(f"image {i}" for i in range(num_images))
    areas = np.where(rng.random(n) < 0.5, np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), rng.choice([0, 1024, 5000, 9216, 30000], n))
    truths = Truths(*names, images, classes, boxes, rng.random(n) < 0.2, areas, _rles(rng, boxes) if masks else None)
    found_images = np.r_[images[copies], rng.integers(0, num_images, extra)]
    found = Found(found_images, found_classes, found_boxes, scores, _rles(rng, found_boxes) if masks else None)
    return truths, found


def _order(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], axis=1)


def _boxes(rng: np.random.Generator, n: int, unique: bool) -> np.ndarray:
    corner, sides = rng.integers(0, 120, (n, 2)) * 1.0, rng.choice([0, 4, 8, 20, 32, 40, 64, 80], (n, 2))
    return np.concatenate([corner, corner + sides], axis=1) + (rng.random((n, 4)) if unique else rng.integers(0, 2, (n, 1)) / 2)


def _rles(rng: np.random.Generator, boxes: np.ndarray) -> list[dict[str, Any]]:
    """Filled boxes with a corner cut off."""
    dense = np.zeros((len(boxes), SIDE, SIDE), bool)
    for mask, (x0, y0, x1, y1) in zip(dense, boxes.astype(int), strict=True):
        mask[y0:y1, x0:x1] = True
        mask[y0 : y0 + int(rng.integers(0, 3)) * 4, x0 : (x0 + x1) // 2] = False
    return Masks.from_dense(dense).rle()


def pycocotools_evaluator(truths: Truths, found: Found, masks: bool, max_dets: int = 100) -> COCOeval:
    """The reference, from a dict of its own; category ids have gaps."""
    images = [{"id": i, "width": SIDE, "height": SIDE} for i in range(len(truths.image_names))]
    categories = [{"id": 10 + 3 * k, "name": name} for k, name in enumerate(truths.class_names)]
    objects = [
        {"id": i + 1, "image_id": int(truths.images[i]), "category_id": int(10 + 3 * truths.class_ids[i]), "bbox": xywh(box),
         "area": float(truths.areas[i]), "iscrowd": int(truths.crowd[i]), **({"segmentation": truths.rles[i]} if masks else {})}
        for i, box in enumerate(truths.boxes_xyxy_px)
    ]  # fmt: skip
    results = [
        {"image_id": int(found.images[i]), "category_id": int(10 + 3 * found.class_ids[i]), "score": float(found.scores[i]),
         **({"segmentation": found.rles[i]} if masks else {"bbox": xywh(box)})}
        for i, box in enumerate(found.boxes_xyxy_px)
    ]  # fmt: skip
    return run_pycocotools({"images": images, "categories": categories, "annotations": objects}, results, masks, max_dets)


def run_pycocotools(data: dict[str, Any], results: list[dict[str, Any]], masks: bool, max_dets: int = 100) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = {"info": {}, **data}
        reference.createIndex()
        if results:
            answer = reference.loadRes(results)
        else:  # loadRes raises on an empty list
            answer = COCO()
            answer.dataset = {**data, "annotations": []}
            answer.createIndex()
        evaluator = COCOeval(reference, answer, "segm" if masks else "bbox")
        evaluator.params.maxDets = [1, 10, max_dets]
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


def xywh(box: np.ndarray) -> list[float]:
    x0, y0, x1, y1 = (float(v) for v in box)
    return [x0, y0, x1 - x0, y1 - y0]


def slow_counts(truths: Truths, found: Found, threshold: float, class_ids: list[int]) -> tuple[int, int, int]:
    """(right, false, missed) of boxes with scores above `threshold` at IoU 0.5, one detection at a time."""
    right = false = missed = 0
    for image in range(len(truths.image_names)):
        for c in class_ids:
            free = [t for t in range(len(truths.images)) if truths.images[t] == image and truths.class_ids[t] == c and not truths.crowd[t]]
            crowds = [t for t in range(len(truths.images)) if truths.images[t] == image and truths.class_ids[t] == c and truths.crowd[t]]
            mine = [d for d in range(len(found.images)) if found.images[d] == image and found.class_ids[d] == c]
            for d in sorted((d for d in mine if found.scores[d] > threshold), key=lambda d: -found.scores[d]):
                fit = [(iou, t) for t in free if (iou := slow_iou(found.boxes_xyxy_px[d], truths.boxes_xyxy_px[t], False)) >= 0.5]
                if fit:
                    free.remove(max(fit)[1])
                    right += 1
                elif not any(slow_iou(found.boxes_xyxy_px[d], truths.boxes_xyxy_px[t], True) >= 0.5 for t in crowds):
                    false += 1
            missed += len(free)
    return right, false, missed


def slow_iou(a: np.ndarray, b: np.ndarray, crowd: bool) -> float:
    (_, _, aw, ah), (_, _, bw, bh) = xywh(a), xywh(b)
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(w, 0) * max(h, 0)
    whole = aw * ah if crowd else aw * ah + bw * bh - common
    return float(common / whole) if whole else 0.0
