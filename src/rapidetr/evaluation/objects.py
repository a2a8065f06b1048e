"""What is compared: all objects of all pictures, and all detections, each as flat arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rapidetr.core.errors import ConfigError

Rles = list[dict[str, Any]] | None  # COCO run-length records, `counts` as string


@dataclass(frozen=True, eq=False)
class Truths:
    """N annotated objects of the pictures `image_names`.

    images int64 [N]: index of the picture · class_ids int64 [N], 0..K-1 · boxes_xyxy_px float [N, 4] · crowd bool [N]: a
    region of many, in which detections are neither right nor wrong · areas float [N] in pixels, as annotated.
    """

    class_names: tuple[str, ...]
    image_names: tuple[str, ...]
    images: np.ndarray
    class_ids: np.ndarray
    boxes_xyxy_px: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    rles: Rles = None

    def __post_init__(self) -> None:
        if not self.class_names or not self.image_names:
            raise ConfigError(
                f"ground truth has {len(self.class_names)} classes and {len(self.image_names)} pictures; expected some of both"
            )
        check(self, "ground truth", ("class_ids", "crowd", "areas"), len(self.image_names), len(self.class_names))

    @property
    def class_counts(self) -> np.ndarray:
        """int64 [K]: objects of each class, crowds left out."""
        return np.bincount(self.class_ids[~self.crowd], minlength=len(self.class_names))


@dataclass(frozen=True, eq=False)
class Found:
    """N detections: images, class_ids and boxes as in `Truths`; scores float [N], 0..1."""

    images: np.ndarray
    class_ids: np.ndarray
    boxes_xyxy_px: np.ndarray
    scores: np.ndarray
    rles: Rles = None

    def check(self, truths: Truths) -> None:
        """ConfigError unless pictures and classes are those of `truths`."""
        check(self, "detections", ("class_ids", "scores"), len(truths.image_names), len(truths.class_names))
        if not ((self.scores >= 0) & (self.scores <= 1)).all():
            raise ConfigError("detections: some scores are not numbers from 0 to 1")

    def limited(self, max_dets: int) -> Found:
        """The `max_dets` best of each picture and class, in the order they had; equal scores by that order."""
        order = np.lexsort((-self.scores, self.class_ids, self.images))  # lexsort is stable
        group = np.stack([self.images[order], self.class_ids[order]])
        first = np.flatnonzero(np.r_[True, (group[:, 1:] != group[:, :-1]).any(0)][: len(order)])
        rank = np.arange(len(order)) - np.repeat(first, np.diff(first, append=len(order)))
        return self.rows(np.sort(order[rank < max_dets]))

    def rows(self, keep: np.ndarray) -> Found:
        """Those at the indices `keep`, in that order."""
        rles = None if self.rles is None else [self.rles[i] for i in keep]
        return Found(self.images[keep], self.class_ids[keep], self.boxes_xyxy_px[keep], self.scores[keep], rles)


def check(objects: Truths | Found, what: str, columns: tuple[str, ...], num_images: int, num_classes: int) -> None:
    """ConfigError unless all columns are equally long, boxes finite, and pictures and classes in range."""
    n = len(objects.images)
    shapes = {name: getattr(objects, name).shape for name in ("images", *columns)}
    if (
        any(shape != (n,) for shape in shapes.values())
        or objects.boxes_xyxy_px.shape != (n, 4)
        or (objects.rles is not None and len(objects.rles) != n)
    ):
        raise ConfigError(f"{what}: {shapes}, boxes {objects.boxes_xyxy_px.shape}; expected one row for each object")
    if not np.isfinite(objects.boxes_xyxy_px).all():
        raise ConfigError(f"{what}: some boxes are not finite numbers")
    for name, values, limit in (("picture", objects.images, num_images), ("class", objects.class_ids, num_classes)):
        if n and not (values.min() >= 0 and values.max() < limit):
            raise ConfigError(f"{what}: {name} numbers run from {values.min()} to {values.max()}; expected 0 to {limit - 1}")


def boxes_xywh(boxes_xyxy_px: np.ndarray) -> np.ndarray:
    """float64 [N, 4]: left, top, width, height."""
    boxes = boxes_xyxy_px.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    return boxes
