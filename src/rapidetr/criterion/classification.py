"""Classification losses: one term of background for every logit, corrected where a query was matched.

All four kinds agree on what is no object: p^2 * softplus(z), times 1 or 0.75. So that term runs over all logits in one
pass that keeps a single tensor for backward, and the kinds differ in M matched entries only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rapidetr.core.errors import ConfigError

KINDS = ("ia-bce", "focal", "varifocal", "position")


class _Background(torch.autograd.Function):
    """Sum of p^2 * softplus(z), in fp32 at least; the derivative is taken in the same pass."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        z = logits.to(torch.promote_types(logits.dtype, torch.float32))
        p, penalty = z.sigmoid(), F.softplus(z)
        slope = torch.addcmul(p, 1 - p, penalty, value=2).mul_(p.square())
        ctx.save_for_backward(slope)
        ctx.dtype = logits.dtype
        return p.square_().mul_(penalty).sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        rounded: Tensor = (slope * gradient).to(ctx.dtype)
        return rounded


def classification_loss(kind: str, logits: Tensor, matched: Tensor, iou: Tensor, image: Tensor, weights: Tensor | None = None) -> Tensor:
    """Sum, not yet normalised, over all logits [B, Q, C].

    `matched` [M] are the logits of the matched query and class, in fp32 or fp64, `iou` [M] of the two boxes without
    gradient, `image` [M] the place in the batch. `weights` [M] scale what a missed or weak detection costs.
    """
    p = matched.sigmoid()
    miss = F.softplus(-matched)  # -log p
    false_alarm = miss + matched  # -log(1 - p)
    nothing = p.square() * false_alarm
    scale = 0.75
    if kind == "ia-bce":  # Align-DETR (Cai et al., 2023)
        scale = 1.0
        quality = (p.detach() ** 0.25 * iou**0.75).clamp(min=0.01)
        loss = quality * miss + (1 - quality) * false_alarm
    elif kind == "focal":  # Lin et al., 2017
        loss = 0.25 * (1 - p).square() * miss
    elif kind == "varifocal":  # Zhang et al., 2021
        loss = torch.where(iou > 0, iou * (iou * miss + (1 - iou) * false_alarm), 0.75 * nothing)
    elif kind == "position":  # Stable-DINO (Liu et al., 2023)
        best = iou.new_zeros(len(logits)).scatter_reduce(0, image, iou, "amax")
        quality = iou / (best[image] + 1e-8)
        loss = torch.where(iou > 0, 0.25, 0.75) * (quality - p).square() * (quality * miss + (1 - quality) * false_alarm)
    else:
        raise ConfigError(f"classification loss is {kind!r}; expected one of {', '.join(KINDS)}")
    if weights is not None:
        loss = loss * weights
    background: Tensor = _Background.apply(logits)
    return scale * (background - nothing.sum()) + loss.sum()
