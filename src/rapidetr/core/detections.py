"""What was found in one picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from rapidetr.core.errors import ConfigError
from rapidetr.core.labels import LabelSpace

if TYPE_CHECKING:
    from PIL.Image import Image

    from rapidetr.core.masks import Masks


@dataclass(frozen=True, eq=False)
class Detections:
    """N detections of one picture, best first.

    boxes_xyxy_px float32 [N, 4]: left, top, right, bottom in pixels of the user's picture, inside it · scores float32 [N],
    0..1 · head_rows int64 [N]: output of the class head that fired · masks: one for each detection, or None for a
    detection model. `error` says why a picture has no detections when broken pictures are to be reported, not raised.
    """

    boxes_xyxy_px: np.ndarray
    scores: np.ndarray
    head_rows: np.ndarray
    labels: LabelSpace
    image_hw: tuple[int, int]
    masks: Masks | None = None
    source: str | None = None  # path or address, where there is one
    resize_filter: str = ""  # the filter of core/preprocessing.py that made the network input
    unnamed_dropped: int = 0  # detections whose row of the head has no class
    error: str | None = None
    times_ms: dict[str, float] = field(default_factory=dict)  # by stage, of the batch that this picture was in

    def __post_init__(self) -> None:
        n = len(self.scores)
        if self.boxes_xyxy_px.shape != (n, 4) or self.head_rows.shape != (n,) or (self.masks is not None and len(self.masks) != n):
            held = "no" if self.masks is None else len(self.masks)
            found = f"{n} scores, boxes {self.boxes_xyxy_px.shape}, rows {self.head_rows.shape}, {held} masks"
            raise ConfigError(f"detections: {found}; expected one of each")
        if self.masks is not None and self.masks.size_hw != tuple(self.image_hw):
            raise ConfigError(f"detections: masks are of a picture of {self.masks.size_hw}, expected {self.image_hw}")

    @classmethod
    def empty(cls, labels: LabelSpace, image_hw: tuple[int, int] = (0, 0), **other: Any) -> Detections:
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), labels, image_hw, **other)

    @classmethod
    def concatenate(cls, parts: Sequence[Detections]) -> Detections:
        """All detections of `parts` (same picture, same labels), best first, ties in the order given."""
        boxes, scores = np.concatenate([p.boxes_xyxy_px for p in parts]), np.concatenate([p.scores for p in parts])
        rows = np.concatenate([p.head_rows for p in parts])
        held = [p.masks for p in parts if p.masks is not None]  # a part without detections may be without masks
        masks = type(held[0])(parts[0].image_hw, [counts for m in held for counts in m.counts]) if held else None
        both = replace(
            parts[0], boxes_xyxy_px=boxes, scores=scores, head_rows=rows, masks=masks, unnamed_dropped=sum(p.unnamed_dropped for p in parts)
        )
        return both[np.argsort(-scores, kind="stable")]

    @property
    def class_ids(self) -> np.ndarray:
        """int64 [N]: class index 0..K-1; -1 where the row of the head has no class (`include_unnamed=True`)."""
        ids: np.ndarray = self.labels.class_of_row[self.head_rows]
        return ids

    @property
    def class_names(self) -> list[str]:
        return [self.labels.names[i] if i >= 0 else "" for i in self.class_ids]

    @property
    def dataset_ids(self) -> np.ndarray:
        """int64 [N]: category id of the data set (COCO: 1..90); -1 where the row of the head has no class."""
        ids: np.ndarray = np.append(np.array(self.labels.dataset_ids, np.int64), -1)[self.class_ids]
        return ids

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: Any) -> Detections:
        """Detections at an index, a slice, an index array or a bool array; always a Detections."""
        keep = np.atleast_1d(np.arange(len(self))[index])
        return replace(
            self,
            boxes_xyxy_px=self.boxes_xyxy_px[keep],
            scores=self.scores[keep],
            head_rows=self.head_rows[keep],
            masks=None if self.masks is None else self.masks[keep],
        )

    def filter(self, *, classes: Iterable[str | int] | None = None, threshold: float | None = None) -> Detections:
        """Only these classes (names or indices) and only scores above `threshold`."""
        keep = np.ones(len(self), bool)
        if classes is not None:
            keep &= np.isin(self.class_ids, self.labels.indices([classes] if isinstance(classes, str | int | np.integer) else classes))
        if threshold is not None:
            keep &= self.scores > threshold
        return self[keep]

    def __repr__(self) -> str:
        found: dict[str, int] = {}
        for name in self.class_names:
            found[name or "?"] = found.get(name or "?", 0) + 1
        what = ", ".join(f"{n} {name}" for name, n in found.items()) or (self.error or "nothing")
        return f"Detections({self.source or 'image'} {self.image_hw[0]}x{self.image_hw[1]}: {what})"

    def to_dict(self, *, masks: str = "rle") -> dict[str, Any]:
        """Plain JSON types; `masks` is 'rle', 'polygons' or 'none'."""
        from rapidetr.core.conversions import to_dict

        return to_dict(self, masks)

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """COCO results (category ids of the data set, boxes as x, y, width, height); unnamed rows are left out."""
        from rapidetr.core.conversions import to_coco

        return to_coco(self, image_id)

    def to_supervision(self) -> Any:
        """supervision.Detections; class_id is the class index, masks are a CompactMask."""
        from rapidetr.core.conversions import to_supervision

        return to_supervision(self)

    def draw(self, image: Any, **options: Any) -> Image:
        """The picture with boxes, masks and labels as PIL image; `image` as for `predict`."""
        from rapidetr.draw.boxes import draw_detections

        return draw_detections(self, image, **options)
