"""Where to cut the scores: the threshold with the best F1, for all classes together and for each."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from rapidetr.evaluation.matching import CROWD
from rapidetr.evaluation.objects import Found, Truths


class Points(NamedTuple):
    """Best operating points, float64, NaN where there is none; scores strictly above `threshold` count, as in `predict`."""

    threshold: np.ndarray
    f1: np.ndarray
    precision: np.ndarray
    recall: np.ndarray


def best_points(truths: Truths, found: Found, matched: np.ndarray) -> Points:
    """[1 + K]: first the point of all classes together (every object counts the same), then one for each class."""
    use = matched != CROWD
    scores, right, classes = found.scores[use], matched[use] >= 0, found.class_ids[use]
    order = np.lexsort((-scores, classes))
    bounds = np.searchsorted(classes[order], np.arange(len(truths.class_names) + 1))
    parts = [np.argsort(-scores, kind="stable"), *(order[a:b] for a, b in pairwise(bounds))]
    objects = [int(truths.class_counts.sum()), *truths.class_counts.tolist()]
    return Points(*np.array([_best_point(scores[p], right[p], n) for p, n in zip(parts, objects, strict=True)]).T)


def _best_point(scores: np.ndarray, right: np.ndarray, objects: int) -> tuple[float, float, float, float]:
    """(threshold, F1, precision, recall) of scores that fall; of equally good thresholds the highest.

    The threshold lies halfway to the next lower score, so that float rounding cannot move a detection across it.
    """
    nothing = float("nan")
    if objects == 0:
        return nothing, nothing, nothing, nothing
    lower = np.append(scores, scores.dtype.type(0))[1:]
    ends = np.flatnonzero(scores > lower)  # equal scores stand or fall together
    hits = np.cumsum(right)[ends]
    f1 = 2 * hits / (ends + 1 + objects)
    if not hits.any():
        return nothing, 0.0, nothing, 0.0
    best = int(np.argmax(f1))
    above, below = scores[ends[best]], lower[ends[best]]
    middle = below + (above - below) / 2  # in the precision of the scores, where nothing may lie between neighbors
    threshold = middle if middle < above else below
    return float(threshold), float(f1[best]), float(hits[best] / (ends[best] + 1)), float(hits[best] / objects)
