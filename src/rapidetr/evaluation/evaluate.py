"""A detector against a split of a dataset, and plain arrays against each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from rapidetr.core.detections import Detections
from rapidetr.core.errors import ConfigError, DatasetError
from rapidetr.core.labels import LabelSpace
from rapidetr.data.records import Dataset, ImageRecord
from rapidetr.evaluation.coco import accumulate, load_library
from rapidetr.evaluation.matching import confuse, find_pairs, match, match_across
from rapidetr.evaluation.objects import Found, Rles, Truths
from rapidetr.evaluation.report import Evaluation, Measure
from rapidetr.evaluation.thresholds import best_points
from rapidetr.runtime.detector import Detector

MIN_MAX_DETS = 10  # average recall is told for 1, 10 and max_dets detections
SHOWN_ABOVE = 0.5  # where no threshold finds anything


def evaluate(
    detector: Detector,
    dataset: Dataset,
    *,
    max_dets: int = 100,
    batch_size: int = 8,
    resize: str = "evaluate",
    threshold: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Every picture through the detector, everything it says (threshold 0) against the annotations.

    Boxes always; masks where both detector and dataset have them. `resize` names the filter of core/preprocessing.py:
    published figures were measured with "evaluate". `progress(done, total)` is called after every batch. Classes meet by
    name. ImageError for a picture that cannot be read, DatasetError where no class is known to both.
    """
    _check_max_dets(max_dets)
    share = find(detector, dataset, batch_size=batch_size, resize=resize, progress=progress)
    return score_shares(dataset, [share], max_dets=max_dets, threshold=threshold)


@dataclass(frozen=True, eq=False)
class Share:
    """What a detector found in some pictures of a dataset, small enough to travel between processes.

    `found.images` count in the whole dataset · truth_rles: of each of these pictures the masks of its annotated objects, which
    need the decoded size; None without masks · notes on classes that only one side knows.
    """

    found: Found
    truth_rles: dict[int, list[dict[str, Any]]] | None
    notes: tuple[str, ...]


def find(
    detector: Detector,
    dataset: Dataset,
    *,
    rank: int = 0,
    ranks: int = 1,
    batch_size: int = 8,
    resize: str = "evaluate",
    progress: Callable[[int, int], None] | None = None,
) -> Share:
    """What the detector says about every `ranks`-th batch from number `rank` on; options and errors as for `evaluate`.

    Whole batches, because the same picture in another batch may be rounded differently: however many ranks there are, the shares
    together hold the same numbers.
    """
    if resize not in ("evaluate", "predict"):
        raise ConfigError(f"resize is {resize!r}; expected 'evaluate' or 'predict'")
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; expected at least 1")
    load_library()  # before hours of predicting
    if not dataset.images:
        raise DatasetError(
            f"the {dataset.split} split of {dataset.root} has no pictures to evaluate; add some, remove it, or name another split"
        )
    class_of, notes = match_classes(detector.labels, dataset.labels)
    with_masks = detector.config.segmentation and dataset.has_outlines
    mine = [i for i in range(len(dataset)) if i // batch_size % ranks == rank]
    parts = [_as_found(0, Detections.empty(detector.labels), class_of, False)]  # for a rank without pictures
    rles: dict[int, list[dict[str, Any]]] = {}
    for i, detections in zip(mine, _predict(detector, [dataset.images[i].path for i in mine], resize, batch_size, progress), strict=True):
        parts.append(_as_found(i, detections, class_of, with_masks))
        if with_masks:
            rles[i] = dataset.images[i].masks(detections.image_hw).rle()
    return Share(_concatenate(parts, with_masks), rles if with_masks else None, notes)


def score_shares(dataset: Dataset, shares: Sequence[Share], *, max_dets: int = 100, threshold: float | None = None) -> Evaluation:
    """The evaluation of all pictures from the shares of all ranks, in any order."""
    rles = None
    if all(share.truth_rles is not None for share in shares):
        of_image = {i: found for share in shares for i, found in (share.truth_rles or {}).items()}
        rles = [rle for i in range(len(dataset)) for rle in of_image[i]]
    found = _concatenate([share.found for share in shares], rles is not None)
    found = found.rows(np.argsort(found.images, kind="stable"))  # as one rank finds them: equal scores count in this order
    return score(as_truths(dataset.images, dataset.labels, rles), found, max_dets=max_dets, threshold=threshold, notes=shares[0].notes)


def _predict(
    detector: Detector, paths: Sequence[str], resize: str, batch_size: int, progress: Callable[[int, int], None] | None
) -> Iterator[Detections]:
    done = 0
    batches = detector.predict_iter(paths, threshold=0.0, purpose=resize, batch_size=batch_size, prefetch=2, on_error="raise")
    for batch in batches:
        yield from batch
        done += len(batch)
        if progress is not None:
            progress(done, len(paths))


def match_classes(detector: LabelSpace, dataset: LabelSpace) -> tuple[np.ndarray, tuple[str, ...]]:
    """(int64 [K of the detector]: class index in the dataset or -1, notes on what only one of them knows)."""
    if detector.names == dataset.names:
        return np.arange(len(detector)), ()
    place = {name: i for i, name in reversed(list(enumerate(dataset.names)))}
    class_of = np.array([place.get(name, -1) for name in detector.names], np.int64)
    unknown = [name for name in dataset.names if name not in detector.names]
    if (class_of < 0).all():
        raise DatasetError(f"the detector knows {_some(detector.names)}, the dataset {_some(dataset.names)}; expected classes in common")
    notes = [f"the detector does not know {_some(unknown)}; its objects count as missed"] if unknown else []
    if (class_of < 0).any():
        notes.append(f"not in the dataset and left out: {_some([n for n in detector.names if n not in place])}")
    return class_of, tuple(notes)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _as_found(image: int, d: Detections, class_of: np.ndarray, masks: bool) -> Found:
    class_ids = class_of[d.class_ids]
    known = d[class_ids >= 0]
    rles = known.masks.rle() if masks and known.masks is not None else None
    return Found(np.full(len(known), image), class_ids[class_ids >= 0], known.boxes_xyxy_px, known.scores, rles)


def _concatenate(parts: Sequence[Found], masks: bool) -> Found:
    columns: dict[str, Any] = {
        n: np.concatenate([getattr(p, n) for p in parts]) for n in ("images", "class_ids", "boxes_xyxy_px", "scores")
    }
    return Found(**columns, rles=list(chain.from_iterable(p.rles or () for p in parts)) if masks else None)


def as_truths(records: Sequence[ImageRecord], labels: LabelSpace, rles: Rles) -> Truths:
    images = np.repeat(np.arange(len(records)), [len(r) for r in records])
    columns: dict[str, Any] = {
        n: np.concatenate([getattr(r, n) for r in records]) for n in ("class_ids", "boxes_xyxy_px", "crowd", "areas")
    }
    return Truths(labels.names, tuple(r.path for r in records), images, **columns, rles=rles)


def score(truths: Truths, found: Found, *, max_dets: int = 100, threshold: float | None = None, notes: tuple[str, ...] = ()) -> Evaluation:
    """Detections against ground truth; masks as well where both have run lengths.

    Confusion and pictures are counted above `threshold`, by default that of the best F1.
    """
    _check_max_dets(max_dets)
    _check_threshold(threshold)
    found.check(truths)
    found = found.limited(max_dets)
    boxes = measure(truths, found, max_dets, threshold, masks=False)
    both = truths.rles is not None and found.rles is not None
    masks = measure(truths, found, max_dets, threshold, masks=True) if both else None
    return Evaluation(truths.class_names, truths.image_names, max_dets, boxes, masks, notes)


def _check_threshold(threshold: float | None) -> None:
    if threshold is not None and not 0 <= threshold <= 1:
        raise ConfigError(f"threshold is {threshold}; expected a score between 0 and 1")


def _check_max_dets(max_dets: int) -> None:
    if max_dets < MIN_MAX_DETS:
        raise ConfigError(f"max_dets is {max_dets}; expected at least {MIN_MAX_DETS}")


def measure(truths: Truths, found: Found, max_dets: int, threshold: float | None, *, masks: bool) -> Measure:
    """All figures of boxes, or of masks."""
    precision, recall = accumulate(truths, found, max_dets, masks)
    pairs = find_pairs(truths, found, masks)
    matched = match(truths, found, pairs)
    points = best_points(truths, found, matched)
    best = SHOWN_ABOVE if math.isnan(points.threshold[0]) else float(points.threshold[0])
    shown_above = best if threshold is None else threshold
    above = found.scores > found.scores.dtype.type(shown_above)  # as `predict` compares
    confusion, counts = confuse(truths, found, matched, match_across(truths, found, pairs, matched, above), above)
    known = np.where(precision[..., 0, -1] < 0, np.nan, precision[..., 0, -1])  # [10, 101, K]
    return Measure(
        metrics=summarize(precision, recall),
        ap=known.mean((0, 1)),
        ap50=known[0].mean(0),
        objects=truths.class_counts,
        **points._asdict(),
        curves=known[0].T,
        shown_above=shown_above,
        confusion=confusion,
        counts=counts,
    )


def summarize(precision: np.ndarray, recall: np.ndarray) -> dict[str, float]:
    """COCO's twelve numbers of what `accumulate` gave, in COCO's order."""
    sizes = ("small", "medium", "large")
    return {
        "AP": _mean(precision[..., 0, -1]),
        "AP50": _mean(precision[0, ..., 0, -1]),
        "AP75": _mean(precision[5, ..., 0, -1]),
        **{f"AP_{size}": _mean(precision[..., i, -1]) for i, size in enumerate(sizes, 1)},
        "AR_1": _mean(recall[..., 0, 0]),
        "AR_10": _mean(recall[..., 0, 1]),
        "AR_max": _mean(recall[..., 0, -1]),
        **{f"AR_{size}": _mean(recall[..., i, -1]) for i, size in enumerate(sizes, 1)},
    }


def _mean(values: np.ndarray) -> float:
    known = values[values > -1]
    return float(known.mean()) if known.size else math.nan
