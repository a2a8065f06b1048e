"""Writes a dataset that every COCO tool reads, in Roboflow's layout."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rapidetr.core.labels import LabelSpace
from rapidetr.core.masks import Masks

Scene = tuple[str, "Image.Image | np.ndarray", np.ndarray, np.ndarray, "Masks | np.ndarray | None"]


def write_coco(folder: str | Path, split: str, images: Iterable[Scene], labels: LabelSpace) -> Path:
    """Path of `folder/split/_annotations.coco.json`, written beside the pictures.

    Each scene is (file name, picture as PIL or RGB uint8 [H, W, 3], boxes_xyxy_px [n, 4], class_ids [n], masks or None);
    masks are stored exactly, as run lengths. Ids start at 1 (pycocotools ignores annotation 0).
    """
    place = Path(folder) / split
    place.mkdir(parents=True, exist_ok=True)
    listed: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, (name, picture, boxes, class_ids, masks) in enumerate(images, 1):
        image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
        image.save(place / name, quality=95)
        listed.append({"id": image_id, "file_name": name, "height": image.height, "width": image.width})
        annotations += _describe(len(annotations) + 1, image_id, boxes, class_ids, masks, labels)
    categories = [{"id": i, "name": n, "supercategory": "none"} for i, n in zip(labels.dataset_ids, labels.names, strict=True)]
    data = {"info": {"description": "RapiDETR"}, "licenses": [], "categories": categories, "images": listed, "annotations": annotations}
    file = place / "_annotations.coco.json"
    file.write_text(json.dumps(data), "utf-8")
    return file


def _describe(
    first_id: int, image_id: int, boxes: np.ndarray, class_ids: np.ndarray, masks: Masks | np.ndarray | None, labels: LabelSpace
) -> list[dict[str, Any]]:
    compact = Masks.from_dense(masks) if isinstance(masks, np.ndarray) else masks
    outlines: list[Any] = [[] for _ in boxes] if compact is None else compact.rle()
    areas = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])) if compact is None else compact.areas
    return [
        {
            "id": first_id + i, "image_id": image_id, "category_id": labels.dataset_ids[int(class_id)], "iscrowd": 0,
            "bbox": [round(float(v), 4) for v in (box[0], box[1], box[2] - box[0], box[3] - box[1])],
            "area": float(area), "segmentation": outline,
        }
        for i, (box, class_id, area, outline) in enumerate(zip(boxes, class_ids, areas, outlines, strict=True))
    ]  # fmt: skip
