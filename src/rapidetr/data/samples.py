"""One picture with its objects, as transforms pass it on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from rapidetr.core.errors import DatasetError


@dataclass(frozen=True, eq=False)
class Sample:
    """pixels uint8 [H, W, 3] RGB · boxes_xyxy_px float32 [n, 4] · class_ids int64 [n], 0..K-1 · masks bool [n, H, W] or None.

    Transforms return new samples and never write into the arrays of one they were given: a cache may hold them.
    """

    pixels: np.ndarray
    boxes_xyxy_px: np.ndarray
    class_ids: np.ndarray
    masks: np.ndarray | None = None
    source: str = ""

    @property
    def size_hw(self) -> tuple[int, int]:
        return self.pixels.shape[0], self.pixels.shape[1]

    def keep(self, chosen: np.ndarray) -> Sample:
        """Only the objects that `chosen` names, bool [n] or indices."""
        masks = None if self.masks is None else self.masks[chosen]
        return replace(self, boxes_xyxy_px=self.boxes_xyxy_px[chosen], class_ids=self.class_ids[chosen], masks=masks)


def check(sample: Sample, num_classes: int, maker: str) -> Sample:
    """The sample itself; DatasetError when it breaks the contract above, naming `maker`, who gave it."""
    n, (height, width) = len(sample.class_ids), sample.pixels.shape[:2]
    shapes = [("boxes", sample.boxes_xyxy_px, (n, 4), "f4"), ("labels", sample.class_ids, (n,), "i8")]
    shapes += [] if sample.masks is None else [("masks", sample.masks, (n, height, width), "b1")]
    for name, array, shape, kind in [("pixels", sample.pixels, (height, width, 3), "u1"), *shapes]:
        if array.shape != shape or array.dtype != kind:
            got = f"{array.dtype} {list(array.shape)}"
            raise DatasetError(
                f"{maker} gave {name} {got}; expected {np.dtype(kind)} {list(shape)} for {n} objects in {height}x{width} pixels"
            )
    if not np.isfinite(sample.boxes_xyxy_px).all():
        raise DatasetError(f"{maker} gave boxes that are not finite; expected x0, y0, x1, y1 in pixels")
    turned = np.flatnonzero((sample.boxes_xyxy_px[:, 2:] < sample.boxes_xyxy_px[:, :2]).any(1))
    if len(turned):
        box = [round(float(v), 1) for v in sample.boxes_xyxy_px[turned[0]]]
        raise DatasetError(f"{maker} gave the box {box}; expected x0 <= x1 and y0 <= y1")
    wrong = [int(c) for c in sample.class_ids if not 0 <= c < num_classes]
    if wrong:
        raise DatasetError(f"{maker} gave label {wrong[0]}; expected class indices 0..{num_classes - 1}; map its ids to indices")
    return sample
