"""IoU and generalised IoU against a slow version, and at their edges."""

from __future__ import annotations

import pytest
import torch

from rapidetr.criterion.boxes import overlap


def slow(a: list[float], b: list[float]) -> tuple[float, float]:
    def corners(x: float, y: float, w: float, h: float) -> tuple[float, float, float, float]:
        w, h = max(w, 0.0), max(h, 0.0)
        return x - w / 2, y - h / 2, x + w / 2, y + h / 2

    p, q = corners(*a), corners(*b)
    shared = max(0.0, min(p[2], q[2]) - max(p[0], q[0])) * max(0.0, min(p[3], q[3]) - max(p[1], q[1]))
    union = (p[2] - p[0]) * (p[3] - p[1]) + (q[2] - q[0]) * (q[3] - q[1]) - shared
    hull = (max(p[2], q[2]) - min(p[0], q[0])) * (max(p[3], q[3]) - min(p[1], q[1]))
    iou = shared / max(union, 1e-7)
    return iou, iou - (hull - union) / max(hull, 1e-7)


def test_overlap_equals_the_slow_version_for_every_pair() -> None:
    a, b = torch.rand(2, 40, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    a[:4, 2] *= -1  # widths below zero count as zero
    iou, giou = overlap(a.T[:, :, None], b.T[:, None, :])
    expected = torch.tensor([[slow(p, q) for q in b.tolist()] for p in a.tolist()], dtype=torch.float64)
    # the same formula in fp64, so only the order of additions differs
    torch.testing.assert_close(torch.stack([iou, giou], -1), expected, rtol=1e-12, atol=1e-12)
    assert (iou > 0.1).any()
    assert (iou == 0).any()


@pytest.mark.parametrize(
    ("second", "iou", "giou"),
    [
        ([0.5, 0.5, 0.5, 0.25], 1.0, 1.0),
        ([0.5, 0.5, 0.25, 0.25], 0.5, 0.5),
        ([0.5, 0.75, 0.5, 0.25], 0.0, 0.0),  # touching: the hull is all box
        ([0.5, 1.25, 0.5, 0.25], 0.0, -0.5),  # as much gap between as box
        ([0.5, 0.5, 0.0, 0.0], 0.0, 0.0),  # a point inside
    ],
)
def test_values_that_can_be_seen(second: list[float], iou: float, giou: float) -> None:
    found = overlap(torch.tensor([0.5, 0.5, 0.5, 0.25]), torch.tensor(second))
    assert [float(v) for v in found] == [iou, giou]  # powers of two: exact


def test_two_points_give_numbers_and_finite_gradients() -> None:
    boxes = torch.zeros(4, 3, requires_grad=True)
    iou, giou = overlap(boxes, torch.zeros(4, 3))
    (iou + giou).sum().backward()
    assert giou.tolist() == [0, 0, 0]
    assert boxes.grad is not None
    assert boxes.grad.isfinite().all()
