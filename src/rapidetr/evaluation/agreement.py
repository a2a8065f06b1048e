"""How far two detectors say the same about the same pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from rapidetr.core.detections import Detections
from rapidetr.core.errors import ConfigError
from rapidetr.evaluation.coco import overlaps
from rapidetr.evaluation.objects import boxes_xywh

SAME_PX = 0.01  # boxes whose sides all lie this close are the same, thin and empty ones too, whose overlap is that of rounding errors


@dataclass(frozen=True)
class Agreement:
    """Detections of two lists that are the same object. Shifts are absolute; of a box the largest of its four sides."""

    images: int
    first: int  # detections of either list
    second: int
    matched: int
    matched_fraction: float  # 0..1: 2 * matched / (first + second); 1 where neither found anything
    score_shift_p50: float
    score_shift_p95: float
    score_shift_max: float
    box_shift_px_p50: float
    box_shift_px_p95: float
    box_shift_px_max: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def agreement(first: Sequence[Detections], second: Sequence[Detections], iou: float = 0.5) -> Agreement:
    """Pairs of the same class that overlap by at least `iou`, largest overlap first, one to one, picture by picture."""
    if len(first) != len(second):
        raise ConfigError(f"agreement of {len(first)} and {len(second)} pictures; expected the same pictures in the same order")
    shifts = [np.zeros((2, 0))] + [_shifts(a, b, iou) for a, b in zip(first, second, strict=True)]
    score, box = np.concatenate(shifts, axis=1)
    n, m, matched = sum(map(len, first)), sum(map(len, second)), len(score)
    spread = [float(v) for values in (score, box) for v in (np.percentile(values, (50, 95, 100)) if matched else np.zeros(3))]
    return Agreement(len(first), n, m, matched, 2 * matched / (n + m) if n + m else 1.0, *spread)


def _shifts(a: Detections, b: Detections, least: float) -> np.ndarray:
    """float64 [2, matched]: shift of score and of box."""
    if not len(a) or not len(b):
        return np.zeros((2, 0))
    boxes = np.abs(a.boxes_xyxy_px.astype(np.float64)[:, None] - b.boxes_xyxy_px[None]).max(2)
    scores = np.abs(a.scores.astype(np.float64)[:, None] - b.scores[None])
    iou = overlaps(boxes_xywh(a.boxes_xyxy_px), boxes_xywh(b.boxes_xyxy_px), np.zeros(len(b), bool))
    iou[boxes <= SAME_PX] = 1
    i, j = np.nonzero((iou >= least) & (a.class_ids[:, None] == b.class_ids[None]))
    order = np.lexsort((scores[i, j], -iou[i, j]))  # of equal overlaps the more similar scores
    free_i, free_j, kept = set(i.tolist()), set(j.tolist()), []
    for p, q in zip(i[order].tolist(), j[order].tolist(), strict=True):
        if p in free_i and q in free_j:
            free_i.remove(p)
            free_j.remove(q)
            kept.append((scores[p, q], boxes[p, q]))
    return np.array(kept, np.float64).reshape(-1, 2).T
