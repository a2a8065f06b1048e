"""Which detection is which object, at one overlap: COCO's rule, and what remains across classes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rapidetr.evaluation.coco import overlaps
from rapidetr.evaluation.objects import Found, Truths, boxes_xywh

IOU = 0.5
NOTHING, CROWD = -1, -2  # in place of an object's index


class Pairs(NamedTuple):
    """P pairs of a detection and an object of the same picture that overlap by at least IOU: indices int64 [P], iou float [P]."""

    found: np.ndarray
    truths: np.ndarray
    iou: np.ndarray

    def where(self, keep: np.ndarray) -> Pairs:
        return Pairs(*(column[keep] for column in self))


def find_pairs(truths: Truths, found: Found, masks: bool) -> Pairs:
    """All pairs of any class, picture by picture, so that memory stays that of one picture."""
    truth_order, truth_bounds = _by_image(truths.images, len(truths.image_names))
    found_order, found_bounds = _by_image(found.images, len(truths.image_names))
    truth_boxes, found_boxes = boxes_xywh(truths.boxes_xyxy_px), boxes_xywh(found.boxes_xyxy_px)
    parts = [Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for image in np.flatnonzero((np.diff(truth_bounds) > 0) & (np.diff(found_bounds) > 0)):
        t = truth_order[truth_bounds[image] : truth_bounds[image + 1]]
        f = found_order[found_bounds[image] : found_bounds[image + 1]]
        if masks and truths.rles is not None and found.rles is not None:
            iou = overlaps([found.rles[i] for i in f], [truths.rles[i] for i in t], truths.crowd[t])
        else:
            iou = overlaps(found_boxes[f], truth_boxes[t], truths.crowd[t])
        row, column = np.nonzero(iou >= IOU)
        parts.append(Pairs(f[row], t[column], iou[row, column]))
    return Pairs(*map(np.concatenate, zip(*parts, strict=True)))


def _by_image(images: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(images, kind="stable")
    return order, np.searchsorted(images[order], np.arange(count + 1))


def match(truths: Truths, found: Found, pairs: Pairs) -> np.ndarray:
    """int64 [N]: for each detection its object of the same class, or NOTHING, or CROWD.

    As in COCO: the best score chooses first, takes the object with the largest overlap that is still free (of equal
    overlaps the last), and a crowd only where no object is left.
    """
    return _pair_off(truths, found, pairs.where(found.class_ids[pairs.found] == truths.class_ids[pairs.truths]))


def match_across(truths: Truths, found: Found, pairs: Pairs, matched: np.ndarray, above: np.ndarray) -> np.ndarray:
    """int64 [N]: for detections `above` the threshold that `match` left with NOTHING, a free object of another class."""
    free = ~truths.crowd
    free[matched[above & (matched >= 0)]] = False
    return _pair_off(truths, found, pairs.where((above & (matched == NOTHING))[pairs.found] & free[pairs.truths]))


def _pair_off(truths: Truths, found: Found, pairs: Pairs) -> np.ndarray:
    rank = np.empty(len(found.scores), np.int64)
    rank[np.argsort(-found.scores, kind="stable")] = np.arange(len(rank))
    crowd = truths.crowd[pairs.truths]
    order = np.lexsort((-pairs.truths, -pairs.iou, crowd, rank[pairs.found]))
    matched, taken = [NOTHING] * len(rank), bytearray(len(truths.images))
    for d, t, many in zip(pairs.found[order].tolist(), pairs.truths[order].tolist(), crowd[order].tolist(), strict=True):
        if matched[d] == NOTHING and (many or not taken[t]):
            matched[d] = CROWD if many else t
            taken[t] = True
    return np.array(matched, np.int64)


def confuse(truths: Truths, found: Found, matched: np.ndarray, across: np.ndarray, above: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(confusion int64 [K + 1, K + 1], counts int64 [images, 4]) at one threshold; the last row and column are background.

    Rows say what an object is, columns what it was found as. Counts of each picture: right, missed, false, confused.
    """
    background = len(truths.class_names)
    partner = np.where(matched >= 0, matched, across)
    shown = above & (matched != CROWD)
    paired = shown & (partner >= 0)
    missed = ~truths.crowd
    missed[partner[paired]] = False
    actual = np.r_[truths.class_ids[partner[paired]], truths.class_ids[missed], np.full((shown & ~paired).sum(), background)]
    said = np.r_[found.class_ids[paired], np.full(missed.sum(), background), found.class_ids[shown & ~paired]]
    image = np.r_[found.images[paired], truths.images[missed], found.images[shown & ~paired]]
    confusion = np.zeros((background + 1, background + 1), np.int64)
    np.add.at(confusion, (actual, said), 1)
    kind = np.select([actual == said, said == background, actual == background], [0, 1, 2], 3)
    counts = np.zeros((len(truths.image_names), 4), np.int64)
    np.add.at(counts, (image, kind), 1)
    return confusion, counts
