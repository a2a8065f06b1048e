"""Time of a whole evaluation of boxes, ours and pycocotools', on the same random detections; writes JSON.

    python benchmarks/evaluate_vs_pycocotools.py --out benchmarks/evaluate_<hardware>_<date>.json

Both start from objects in memory. Ours includes what pycocotools does not give: thresholds, curves, confusion, worst images.
The two are interleaved, one thread each (neither library uses more for boxes); seconds are of the processor, so that other
programs on the machine do not count.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rapidetr.evaluation import Found, Truths, score
from rapidetr.evaluation.objects import boxes_xywh


def make_problem(num_images: int, per_image: int, num_classes: int, objects: int, seed: int = 0) -> tuple[Truths, Found]:
    """`objects` annotated objects an image on average; two thirds of them found by a noisy copy, the other detections anywhere."""
    rng = np.random.default_rng(seed)
    images = np.sort(rng.integers(0, num_images, num_images * objects))
    classes, corner, sides = rng.integers(0, num_classes, len(images)), rng.random((len(images), 2)) * 400, rng.random((len(images), 2))
    boxes = np.concatenate([corner, corner + 8 + 230 * sides**2], axis=1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    names = tuple(map(str, range(num_classes))), tuple(map(str, range(num_images)))
    truths = Truths(*names, images, classes, boxes, rng.random(len(images)) < 0.01, areas)
    hit = np.flatnonzero(rng.random(len(images)) < 0.67)
    rest = num_images * per_image - len(hit)
    corner = rng.random((rest, 2)) * 400
    noisy = boxes[hit] + rng.normal(0, 0.08, (len(hit), 4)) * np.tile(boxes[hit, 2:] - boxes[hit, :2], 2)
    found = np.r_[noisy, np.concatenate([corner, corner + 8 + 230 * rng.random((rest, 2)) ** 2], axis=1)]
    columns = np.r_[images[hit], np.arange(rest) % num_images], np.r_[classes[hit], rng.integers(0, num_classes, rest)]
    return truths, Found(*columns, found, np.r_[rng.beta(4, 2, len(hit)), rng.beta(1, 6, rest)])


def as_coco(truths: Truths, found: Found) -> tuple[dict[str, object], list[dict[str, object]]]:
    rows = zip(truths.images, truths.class_ids, boxes_xywh(truths.boxes_xyxy_px), truths.areas, truths.crowd, strict=True)
    objects = [
        {"id": i, "image_id": int(m), "category_id": int(c), "bbox": b.tolist(), "area": float(a), "iscrowd": int(crowd)}
        for i, (m, c, b, a, crowd) in enumerate(rows, 1)
    ]
    results = [
        {"image_id": int(m), "category_id": int(c), "bbox": b.tolist(), "score": float(s)}
        for m, c, b, s in zip(found.images, found.class_ids, boxes_xywh(found.boxes_xyxy_px), found.scores, strict=True)
    ]
    images = [{"id": i} for i in range(len(truths.image_names))]
    return {"images": images, "categories": [{"id": i} for i in range(len(truths.class_names))], "annotations": objects}, results


def run_pycocotools(data: dict[str, object], results: list[dict[str, object]]) -> np.ndarray:
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = {"info": {}, **data}
        reference.createIndex()
        evaluator = COCOeval(reference, reference.loadRes(results), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--per-image", type=int, default=100, help="detections of each image")
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--objects", type=int, default=7, help="annotated objects of each image")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    truths, found = make_problem(args.images, args.per_image, args.classes, args.objects)
    data, results = as_coco(truths, found)
    ours, theirs, differences = [], [], []
    for _ in range(args.repeats):
        seconds, evaluation = timed(lambda: score(truths, found))
        ours.append(seconds)
        seconds, stats = timed(lambda: run_pycocotools(data, results))
        theirs.append(seconds)
        differences.append(float(np.abs(np.array(list(evaluation.boxes.metrics.values())) - stats).max()))
    record = {
        "what": "evaluation of boxes, processor seconds, one thread, interleaved",
        "problem": {"images": args.images, "detections": len(found.images), "objects": len(truths.images), "classes": args.classes},
        "ours_cpu_s": ours,
        "pycocotools_cpu_s": theirs,
        "ratio_of_medians": statistics.median(ours) / statistics.median(theirs),
        "largest_difference_of_12_figures": max(differences),
        "ap": evaluation.boxes.metrics["AP"],
        "versions": {name: version(name) for name in ("numpy", "pycocotools", "faster-coco-eval")},
        "machine": {"python": platform.python_version(), "system": platform.system(), "processor": platform.machine()},
    }
    text = json.dumps(record, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
