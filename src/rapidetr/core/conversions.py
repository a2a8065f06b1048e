"""Detections in the forms that other programs read: plain JSON, COCO results, supervision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rapidetr.core.errors import BackendMissing, ConfigError
from rapidetr.core.masks import Masks, encode_runs

if TYPE_CHECKING:
    from rapidetr.core.detections import Detections


def to_dict(detections: Detections, masks: str = "rle") -> dict[str, Any]:
    """A record that `json.dumps` takes; boxes to 1/1000 pixel, scores to 6 decimals, times to 1/1000 ms.

    `mask` is None, a COCO run-length record, or a list of outlines as flat lists x, y, x, y (pixel edges, whole numbers);
    `area_px` is there where the model makes masks. Rows without a class have class_id and dataset_id -1.
    """
    if masks not in ("rle", "polygons", "none"):
        raise ConfigError(f"masks is {masks!r}; expected 'rle', 'polygons' or 'none'")
    held = detections.masks
    shapes: list[Any] = [None] * len(detections)
    if held is not None and masks == "rle":
        shapes = list(held.rle())
    elif held is not None and masks == "polygons":
        shapes = [[ring.astype(int).ravel().tolist() for ring in rings] for rings in held.polygons()]
    found = []
    for box, score, name, class_id, dataset_id, row, shape in zip(
        detections.boxes_xyxy_px.tolist(),
        detections.scores.tolist(),
        detections.class_names,
        detections.class_ids.tolist(),
        detections.dataset_ids.tolist(),
        detections.head_rows.tolist(),
        shapes,
        strict=True,
    ):
        found.append(
            {
                "box_xyxy_px": [round(v, 3) for v in box],
                "score": round(score, 6),
                "class_id": class_id,
                "class_name": name,
                "dataset_id": dataset_id,
                "head_row": row,
                "mask": shape,
            }
        )
    if held is not None:
        for one, area in zip(found, held.areas.tolist(), strict=True):
            one["area_px"] = area
    return {
        "source": detections.source,
        "size_hw": list(detections.image_hw),
        "resize_filter": detections.resize_filter,
        "unnamed_dropped": detections.unnamed_dropped,
        "error": detections.error,
        "times_ms": {stage: round(ms, 3) for stage, ms in detections.times_ms.items()},
        "detections": found,
    }


def to_coco(detections: Detections, image_id: int) -> list[dict[str, Any]]:
    """COCO results, unrounded because rounding makes ties: category id of the data set, bbox as x, y, width, height in pixels.

    `segmentation` is a run-length record where the model makes masks. Rows of the head without a class are left out.
    """
    named = detections[detections.class_ids >= 0]
    boxes = named.boxes_xyxy_px.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    found: list[dict[str, Any]] = [
        {"image_id": image_id, "category_id": category, "bbox": box, "score": score}
        for category, box, score in zip(named.dataset_ids.tolist(), boxes.tolist(), named.scores.tolist(), strict=True)
    ]
    if named.masks is not None:
        for one, record in zip(found, named.masks.rle(), strict=True):
            one["segmentation"] = record
    return found


def to_supervision(detections: Detections) -> Any:
    """supervision.Detections with class index, data `class_name` and `dataset_id` [N] (also for N = 0), masks as CompactMask.

    Masks go over crop by crop, never as N x H x W. Raises BackendMissing without a supervision that has CompactMask (0.29).
    """
    try:
        from supervision import CompactMask
        from supervision import Detections as Supervision
    except ImportError as problem:
        need = f"to_supervision() needs supervision 0.29 or newer ({problem}); install it with: pip install 'rapidetr[supervision]'"
        raise BackendMissing(need) from None
    held = detections.masks
    return Supervision(
        xyxy=detections.boxes_xyxy_px.astype(np.float32),
        mask=None if held is None else CompactMask(*_crop_runs(held), held.size_hw),
        confidence=detections.scores.astype(np.float32),
        class_id=detections.class_ids,
        data={"class_name": np.array(detections.class_names, str), "dataset_id": detections.dataset_ids},
        metadata={"source": detections.source, "resize_filter": detections.resize_filter},
    )


def _crop_runs(masks: Masks) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """(int32 run counts of each crop, crop sizes int32 [N, 2] as h, w, corners int32 [N, 2] as x, y); an empty mask is one empty pixel."""
    runs, sizes, corners = [], [], []
    for i in range(len(masks)):
        (y, x), crop = masks.crop(i)
        crop = crop if crop.size else np.zeros((1, 1), bool)
        runs.append(encode_runs(crop).astype(np.int32))
        sizes.append(crop.shape)
        corners.append((x, y))
    return runs, np.array(sizes, np.int32).reshape(-1, 2), np.array(corners, np.int32).reshape(-1, 2)
