"""`evaluate` of the official classes: COCO metrics and the F1 that is a mean over classes, under the official keys."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from rapidetr.compat.training import MAX_DETS, check_names, dataset_of
from rapidetr.core.errors import ConfigError
from rapidetr.data.read import find_splits, read_dataset
from rapidetr.data.records import Dataset
from rapidetr.evaluation.evaluate import as_truths, find, score_shares
from rapidetr.evaluation.matching import CROWD, find_pairs, match
from rapidetr.evaluation.objects import Found, Truths
from rapidetr.evaluation.report import Measure
from rapidetr.runtime.detector import Detector

_NAMES = {"mAP_50_95": "AP", "mAP_50": "AP50", "mAP_75": "AP75", "mAR": "AR_max"}
_THRESHOLDS = np.linspace(0, 1, 101)


def evaluate(name: str, detector: Detector, split: str, keywords: Mapping[str, Any]) -> dict[str, float]:
    """Metrics of a split, "test" or "val", under the official keys; a table is printed. Keywords are those of `train`; those
    that only training has change nothing, as officially.
    """
    check_names(name, keywords)
    if split not in ("test", "val"):
        raise ConfigError(f"{name}: split is {split!r}; expected 'test' or 'val'")
    dataset, max_dets = _read(name, split, keywords), keywords.get("eval_max_dets", MAX_DETS)
    batch_size = keywords.get("eval_batch_size") or keywords.get("batch_size", 4)
    share = find(detector, dataset, batch_size=4 if batch_size == "auto" else batch_size)
    scores = score_shares(dataset, [share], max_dets=max_dets)
    print(scores.to_text())
    truths = as_truths(dataset.images, dataset.labels, None)
    found = {
        f"{split}/{key}": value for key, value in {**_metrics(scores.boxes), **macro_f1(truths, share.found.limited(max_dets))}.items()
    }
    if scores.masks is not None:
        found |= {f"{split}/segm_{key}": value for key, value in _metrics(scores.masks).items()}
    if keywords.get("log_per_class_metrics"):
        measure = scores.masks or scores.boxes
        found |= {f"{split}/AP/{label}": float(ap) for label, ap in zip(scores.class_names, measure.ap, strict=True)}
    return found


def _read(name: str, split: str, keywords: Mapping[str, Any]) -> Dataset:
    """The split; the valid one instead of a test split that YOLO and COCO-2017 folders lack, as officially."""
    folder = dataset_of(name, keywords)
    splits = find_splits(folder)
    optional = keywords.get("dataset_file") == "coco" or any(source.format == "yolo" for source in splits.values())
    if split == "test" and "test" not in splits and "valid" in splits and optional:
        print(f"{name}: {folder} has no test split; these are the scores of the valid split", file=sys.stderr)
        split = "val"
    return read_dataset(folder, split)


def _metrics(measure: Measure) -> dict[str, float]:
    return {key: measure.metrics[ours] for key, ours in _NAMES.items()}


def macro_f1(truths: Truths, found: Found) -> dict[str, float]:
    """Best mean F1 over the classes that have objects, of one threshold 0, 0.01 ... 1 for all, with its mean precision and recall.

    Boxes at IoU 0.5; scores of at least the threshold count.
    """
    matched = match(truths, found, find_pairs(truths, found, masks=False))
    rows = []
    for k in np.flatnonzero(truths.class_counts):
        mine = (matched != CROWD) & (found.class_ids == k)
        right = mine & (matched >= 0)
        above, hits = (_count_above(found.scores[chosen]) for chosen in (mine, right))
        objects = truths.class_counts[k]
        rows.append((2 * hits / (above + objects), hits / np.maximum(above, 1), hits / objects))
    f1, precision, recall = np.mean(rows, axis=0) if rows else np.full((3, len(_THRESHOLDS)), np.nan)
    best = int(np.argmax(f1))
    return {"F1": float(f1[best]), "precision": float(precision[best]), "recall": float(recall[best])}


def _count_above(scores: np.ndarray) -> np.ndarray:
    """int64 [101]: how many scores are at least each threshold."""
    return len(scores) - np.searchsorted(np.sort(scores).astype(np.float64), _THRESHOLDS)
