"""The pictures that a detector gets wrong most, with what is in them and what it found, ready to be drawn."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from rapidetr.core.detections import Detections
from rapidetr.core.labels import LabelSpace
from rapidetr.data.records import Dataset, ImageRecord
from rapidetr.evaluation.evaluate import match_classes
from rapidetr.evaluation.report import COUNTS, Evaluation
from rapidetr.runtime.detector import Detector


@dataclass(frozen=True, eq=False)
class Pair:
    """`truth` and `found` of one picture, classes numbered as in the dataset; the scores of a truth are 1."""

    path: str
    caption: str
    truth: Detections
    found: Detections


def worst_pairs(detector: Detector, dataset: Dataset, evaluation: Evaluation, *, count: int = 12, resize: str = "evaluate") -> list[Pair]:
    """At most `count` pictures that have mistakes, the worst first; what is found lies above the evaluation's threshold."""
    measure = evaluation.masks or evaluation.boxes
    chosen = [int(i) for i in measure.worst_images()[:count] if measure.counts[i, 1:].any()]
    class_of, _ = match_classes(detector.labels, dataset.labels)
    labels = LabelSpace.contiguous(dataset.labels.names, dataset_ids=dataset.labels.dataset_ids)
    pairs = []
    for i in chosen:
        record = dataset.images[i]
        seen = detector.predict(record.path, measure.shown_above, purpose=resize)[0]
        rows = class_of[seen.class_ids]
        found = replace(seen[rows >= 0], head_rows=rows[rows >= 0], labels=labels)
        told = ", ".join(f"{n} {what}" for n, what in zip(measure.counts[i], COUNTS, strict=True))
        truth = truth_of(record, labels, seen.image_hw, masks=evaluation.masks is not None)
        pairs.append(Pair(record.path, f"{record.path}: {told}", truth, found))
    return pairs


def truth_of(record: ImageRecord, labels: LabelSpace, image_hw: tuple[int, int], *, masks: bool) -> Detections:
    """The annotated objects as if they had been found, each with a score of 1; boxes are cut at the border of the picture."""
    sides = np.array([image_hw[1], image_hw[0]] * 2, np.float32)
    boxes = np.clip(record.boxes_xyxy_px, 0, sides)
    outlines = record.masks(image_hw) if masks else None
    return Detections(boxes, np.ones(len(record), np.float32), record.class_ids, labels, image_hw, outlines, record.path)
