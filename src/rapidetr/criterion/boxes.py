"""Overlap of boxes, element by element or broadcast."""

from __future__ import annotations

from torch import Tensor

SMALLEST = 1e-7  # areas below this count as this


def overlap(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU (Rezatofighi et al., 2019) of boxes [4, ...] as centre x, centre y, width, height.

    The coordinates come first, the other axes broadcast; negative widths and heights count as 0.
    """
    (left_a, top_a, right_a, bottom_a), area_a = _corners(first)
    (left_b, top_b, right_b, bottom_b), area_b = _corners(second)
    shared = (right_a.minimum(right_b) - left_a.maximum(left_b)).clamp_(min=0)
    shared = shared * (bottom_a.minimum(bottom_b) - top_a.maximum(top_b)).clamp_(min=0)
    union = area_a + area_b - shared
    iou = shared / union.clamp(min=SMALLEST)
    hull = (right_a.maximum(right_b) - left_a.minimum(left_b)) * (bottom_a.maximum(bottom_b) - top_a.minimum(top_b))
    return iou, iou - (hull - union) / hull.clamp(min=SMALLEST)


def _corners(boxes: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Left, top, right, bottom; and the area."""
    x, y, width, height = boxes.unbind(0)
    width, height = width.clamp(min=0), height.clamp(min=0)
    return (x - width / 2, y - height / 2, x + width / 2, y + height / 2), width * height
