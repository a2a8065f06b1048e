"""What the network said -> what the user gets: the best scores over all rows, boxes in pixels, masks of those kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from numbers import Real

import numpy as np

from rapidetr.core.clock import StageClock
from rapidetr.core.detections import Detections
from rapidetr.core.errors import ConfigError, NotFinite
from rapidetr.core.labels import LabelSpace
from rapidetr.core.outputs import Geometry, RawOutput
from rapidetr.pixels.overlap import overlap


def select(
    raw: RawOutput,
    geometries: Sequence[Geometry],
    labels: LabelSpace,
    *,
    threshold: float = 0.5,
    classes: Iterable[str | int] | None = None,
    max_detections: int | None = None,
    nms: float | None = None,
    one_label_per_query: bool = False,
    include_unnamed: bool = False,
    resize_filter: str = "",
    clock: StageClock | None = None,
) -> list[Detections]:
    """One Detections for each picture or tile, best first, in pixels of the whole picture.

    The best `max_detections` (the number of queries unless told) of all rows of the head are taken first; of these the
    scores above `threshold` (0..1), the rows with a class (the rest is counted), then `classes`, then the best label of
    each query, then class-wise suppression above the overlap `nms` (0..1). ConfigError for arguments out of range, NotFinite
    for values that are not finite.
    """
    check_request(raw, geometries, labels, threshold, max_detections, nms)
    clock = clock or StageClock()
    wanted = None if classes is None else labels.indices([classes] if isinstance(classes, str | int) else classes)
    results = []
    for i, geometry in enumerate(geometries):
        with clock.stage("select"):
            scores = sigmoid(raw.logits[i])
            flat = best(scores.reshape(-1), max_detections or len(scores), threshold)
            query, row = np.divmod(flat, scores.shape[1])
            named = labels.class_of_row[row] >= 0
            keep = named | include_unnamed
            if wanted is not None:
                keep &= np.isin(labels.class_of_row[row], wanted)
            if one_label_per_query:
                keep[keep] = first_of_each(query[keep])
            boxes = boxes_in_pixels(raw.boxes[i][query], geometry)
            if nms is not None:
                keep[keep] = suppress(boxes[keep], row[keep], nms)
            dropped = 0 if include_unnamed else int((~named).sum())
            found = Detections(boxes[keep], scores.reshape(-1)[flat[keep]], row[keep], labels, geometry.full_hw)
            found = replace(found, resize_filter=resize_filter, unnamed_dropped=dropped)
        if raw.masks is not None:
            from rapidetr.pixels.masks import upsample_masks

            with clock.stage("masks"):
                found = replace(found, masks=upsample_masks(raw.masks[i], query[keep], geometry))
        results.append(found)
    return results


def check_request(
    raw: RawOutput, geometries: Sequence[Geometry], labels: LabelSpace, threshold: float, max_detections: int | None, nms: float | None
) -> None:
    """ConfigError for what cannot be selected from."""
    if not 0 <= threshold <= 1:
        raise ConfigError(f"threshold is {threshold}; expected a score between 0 and 1")
    if nms is not None and not (is_number(nms) and 0 <= nms <= 1):
        raise ConfigError(f"nms is {nms!r}; expected an overlap between 0 and 1")
    if max_detections is not None and not (hasattr(max_detections, "__index__") and max_detections >= 1):
        raise ConfigError(f"max_detections is {max_detections!r}; expected a whole number of at least 1")
    if len(raw.logits) != len(geometries):
        raise ConfigError(f"the network returned {len(raw.logits)} pictures for {len(geometries)} geometries")
    if raw.logits.shape[2] != labels.head_rows:
        raise ConfigError(f"the class head has {raw.logits.shape[2]} rows, but the labels describe {labels.head_rows}")
    if not (np.isfinite(raw.logits).all() and np.isfinite(raw.boxes).all()):
        raise NotFinite("the network returned values that are not finite; try float32, or check the weights")


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Scores 0..1, float32, in the form torch uses: it saturates at the same logits, so the same scores are equal."""
    with np.errstate(over="ignore"):  # exp overflows to infinity below -88.7, which gives the score 0
        return np.float32(1) / (np.float32(1) + np.exp(-logits.astype(np.float32, copy=False)))


def best(scores: np.ndarray, count: int, threshold: float) -> np.ndarray:
    """Indices [<= count] into flat scores, best first, equal scores by index, only those strictly above `threshold`.

    Equal to a stable descending sort, cut at `count`, then filtered: what is above the threshold comes first in it anyway.
    """
    above = np.flatnonzero(scores > np.float32(threshold))
    if len(above) > count:
        values = scores[above]
        above = above[values >= np.partition(values, len(values) - count)[len(values) - count]]
    return above[np.argsort(-scores[above], kind="stable")[:count]]


def boxes_in_pixels(boxes: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Left, top, right, bottom, float32 [N, 4] in the whole picture, of center x, y, width, height in units of the view.

    Negative sides count as 0; corners are clamped to the picture or tile.
    """
    (height, width), (y, x) = geometry.image_hw, geometry.offset_yx
    center, half = boxes[:, :2], np.float32(0.5) * np.clip(boxes[:, 2:], 0, None)
    size = np.array([width, height, width, height], np.float32)
    corners = np.concatenate([center - half, center + half], axis=1, dtype=np.float32) * size
    return np.asarray(np.clip(corners, np.float32(0), size) + np.array([x, y, x, y], np.float32))


def first_of_each(values: np.ndarray) -> np.ndarray:
    """bool [N]: True where a value comes for the first time."""
    first = np.zeros(len(values), bool)
    first[np.unique(values, return_index=True)[1]] = True
    return first


def is_number(value: object) -> bool:
    """Python's numbers and NumPy's; strings and arrays are none."""
    return isinstance(value, Real)


def suppress(boxes: np.ndarray, rows: np.ndarray, limit: float) -> np.ndarray:
    """bool [N]: False where an earlier kept box of the same row covers more than `limit` (intersection over union)."""
    keep = np.ones(len(boxes), bool)
    for i in range(len(boxes)):
        if keep[i]:
            keep[i + 1 :] &= (rows[i + 1 :] != rows[i]) | (overlap(boxes[i], boxes[i + 1 :])[0] <= limit)
    return keep
