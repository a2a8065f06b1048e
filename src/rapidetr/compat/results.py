"""Detections as the official package returns them: supervision.Detections whose class_id is the row of the class head."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from rapidetr.core.detections import Detections
from rapidetr.core.labels import COCO_NAMES, LabelSpace

if TYPE_CHECKING:
    from supervision import Detections as OfficialDetections

BACKGROUND = "__background__"


def to_official(detections: Detections, picture: np.ndarray | None) -> OfficialDetections:
    """xyxy, confidence, class_id and dense bool masks; data class_name and source_shape [N]; `picture` goes to the metadata as uint8.

    Raises BackendMissing without supervision.
    """
    found: OfficialDetections = replace(detections, masks=None).to_supervision()
    names = np.array(row_names(detections.labels), object)
    found.class_id = detections.head_rows
    found.mask = None if detections.masks is None else detections.masks.dense()
    shapes = np.tile(np.array(detections.image_hw, np.int64), (len(detections), 1))
    found.data = {"source_shape": shapes, "class_name": names[detections.head_rows]}
    found.metadata = {} if picture is None else {"source_image": to_uint8(picture)}
    return found


def row_names(labels: LabelSpace) -> list[str]:
    """Name of every row of the head: "" where COCO has none; the last row of other heads is "__background__"."""
    names = [""] * labels.head_rows
    for name, row in zip(labels.names, labels.rows, strict=True):
        names[row] = name
    if labels.rows == tuple(range(len(labels))):
        names[-1] = BACKGROUND
    return names


def relabel(labels: LabelSpace, num_classes: int) -> LabelSpace:
    """The classes after `num_classes` was asked for: COCO ids where the head outnumbers the 80 COCO names, else names from row 0 on."""
    names = labels.names
    if names == tuple(COCO_NAMES.values()) and num_classes > len(names):
        ids = [i for i in COCO_NAMES if i <= num_classes]
        return LabelSpace(tuple(COCO_NAMES[i] for i in ids), tuple(ids), tuple(ids), num_classes + 1)
    return LabelSpace.contiguous(names[:num_classes], head_rows=num_classes + 1)


def to_uint8(picture: np.ndarray) -> np.ndarray:
    """RGB uint8 of a picture in 0..255 or 0..1."""
    return picture if picture.dtype == np.uint8 else np.rint(picture * 255).astype(np.uint8)
