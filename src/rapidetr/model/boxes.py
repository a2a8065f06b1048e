"""Geometry of boxes: refinement and sine embedding. At least fp32, whatever precision the network runs in."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def exact(x: Tensor) -> Tensor:
    """fp32, or fp64 in a fp64 network: half precision moves boxes by pixels."""
    return x if x.dtype == torch.float64 else x.float()


def refine(reference: Tensor, delta: Tensor, reparam: bool) -> Tensor:
    """Reference boxes [..., 4] moved by what a head said.

    Re-parametrised: centre shifts in units of the reference's size, log of the scale; the result is a box, not clamped.
    Otherwise both are in logit space and add up; the caller applies the sigmoid.
    """
    delta = exact(delta)
    if not reparam:
        return reference + delta
    size = reference[..., 2:]
    return torch.cat([delta[..., :2] * size + reference[..., :2], delta[..., 2:].exp() * size], dim=-1)


def embed_boxes(boxes_BQ4: Tensor, width: int) -> Tensor:
    """Sine embedding [B, Q, 2 * width] of (cy, cx, w, h), each with width / 2 channels: sin at even, cos at odd places.

    Attention Is All You Need (Vaswani et al., 2017), temperature 10000, arguments scaled by 2 pi.
    """
    n = width // 2
    k = torch.arange(n, device=boxes_BQ4.device, dtype=boxes_BQ4.dtype)
    period = 10000 ** (2 * torch.div(k, 2, rounding_mode="floor") / n)
    angle = boxes_BQ4[..., [1, 0, 2, 3], None] * (2 * math.pi) / period
    waves = torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], dim=-1)
    return waves.flatten(-3)


class Mlp(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)
