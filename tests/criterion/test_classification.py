"""Classification losses against their dense formulas, and their gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rapidetr.core.errors import ConfigError
from rapidetr.criterion.classification import KINDS, classification_loss

IMAGE, QUERY, LABEL = torch.tensor([0, 0, 0, 1]), torch.tensor([1, 4, 2, 3]), torch.tensor([2, 0, 0, 1])


def problem(seed: int = 0, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(2, 6, 3, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), torch.tensor([0.7, 0.0, 0.2, 0.5], dtype=torch.float64)


def fast(kind: str, logits: Tensor, iou: Tensor, weights: Tensor | None = None) -> Tensor:
    return classification_loss(kind, logits, logits[IMAGE, QUERY, LABEL].to(iou.dtype), iou, IMAGE, weights)


def dense(kind: str, z: Tensor, iou: Tensor) -> Tensor:
    """Every formula over all entries, with weights and targets as full tensors."""
    at, p = (IMAGE, QUERY, LABEL), z.sigmoid()
    y = torch.zeros_like(z)
    if kind == "ia-bce":
        t = (p[at].detach() ** 0.25 * iou**0.75).clamp(min=0.01)
        positive, negative = y.clone(), p**2
        positive[at], negative[at] = t, 1 - t
        return (negative * z - F.logsigmoid(z) * (positive + negative)).sum()
    best = torch.stack([iou[:3].max(), iou[3]])[IMAGE]
    y[at] = {"focal": torch.ones_like(iou), "varifocal": iou, "position": iou / (best + 1e-8)}[kind]
    entropy = F.binary_cross_entropy_with_logits(z, y, reduction="none")
    if kind == "focal":
        hit = p * y + (1 - p) * (1 - y)
        return ((0.25 * y + 0.75 * (1 - y)) * (1 - hit) ** 2 * entropy).sum()
    if kind == "varifocal":
        return (torch.where(y > 0, y, 0.75 * (p - y).abs() ** 2) * entropy).sum()
    return (torch.where(y > 0, 0.25, 0.75) * (y - p).abs() ** 2 * entropy).sum()


@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradient_of_the_dense_formula(kind: str) -> None:
    logits, iou = problem()
    ours, theirs = fast(kind, logits, iou), dense(kind, logits, iou)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)  # fp64, other order of additions
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_the_slope(kind: str) -> None:
    logits, iou = problem(1)
    if kind == "ia-bce":  # its quality holds the probability without gradient: hold the matched logits for the slope, too
        matched = logits[IMAGE, QUERY, LABEL].detach()
        assert torch.autograd.gradcheck(lambda z: classification_loss(kind, z, matched, iou, IMAGE), logits)
    else:
        assert torch.autograd.gradcheck(lambda z: fast(kind, z, iou), logits)


@pytest.mark.parametrize("kind", KINDS)
def test_extreme_logits_stay_finite(kind: str) -> None:
    logits, iou = problem(2, scale=1e4)
    half = logits.detach().float().requires_grad_()
    loss = fast(kind, half, iou.float())
    loss.backward()
    assert loss.isfinite()
    assert half.grad is not None
    assert half.grad.isfinite().all()


def test_half_precision_logits_are_summed_in_fp32() -> None:
    """bf16 logits give what the same numbers give in fp32, and a bf16 gradient."""
    logits = problem(3)[0].detach().bfloat16()
    low, wide = logits.clone().requires_grad_(), logits.float().requires_grad_()
    iou = torch.tensor([0.7, 0.0, 0.2, 0.5])
    a, b = fast("ia-bce", low, iou), fast("ia-bce", wide, iou)
    assert torch.equal(a, b)
    a.backward()
    b.backward()
    assert low.grad is not None
    assert low.grad.dtype == torch.bfloat16
    torch.testing.assert_close(low.grad.float(), wide.grad, rtol=2**-7, atol=1e-6)  # two roundings to 8 bits


def test_weights_scale_the_matched_entry_alone() -> None:
    """Foreground is linear in the weights; what is no object does not move."""
    logits, iou = problem(4)
    plain, double = fast("ia-bce", logits, iou), fast("ia-bce", logits, iou, torch.tensor([1.0, 1.0, 1.0, 2.0]))
    z = logits[1, 3, 1]
    quality = (z.sigmoid() ** 0.25 * 0.5**0.75).clamp(min=0.01)
    torch.testing.assert_close(double - plain, -quality * F.logsigmoid(z) - (1 - quality) * F.logsigmoid(-z), rtol=1e-10, atol=0)


def test_unknown_kind() -> None:
    logits, iou = problem()
    with pytest.raises(ConfigError) as found:
        fast("hinge", logits, iou)
    assert str(found.value) == "classification loss is 'hinge'; expected one of ia-bce, focal, varifocal, position"
