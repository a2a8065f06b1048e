"""How much boxes cover each other."""

from __future__ import annotations

import numpy as np


def overlap(box: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(intersection over union, intersection over the smaller box), float [N], of one box [4] with boxes [N, 4]; xyxy.

    0 where a box is empty.
    """
    sides = np.clip(np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2]), 0, None)
    common, area, areas = sides[:, 0] * sides[:, 1], np.prod(box[2:] - box[:2]), np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    tiny = np.finfo(np.float32).tiny
    return common / np.maximum(area + areas - common, tiny), common / np.maximum(np.minimum(area, areas), tiny)
