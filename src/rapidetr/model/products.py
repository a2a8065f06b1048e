"""Products with what stands before or after them multiplied in. Exact in real numbers; called in fp64, where rounding is lost."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rapidetr.core.preprocessing import Preprocessing


def product(weight: Tensor, bias: Tensor) -> nn.Linear:
    """x -> weight x + bias, of copies."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype).requires_grad_(False)
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    return layer


def on_affine(layer: nn.Linear, gain: Tensor, shift: Tensor) -> nn.Linear:
    """x -> layer(gain x + shift)."""
    return product(layer.weight * gain, layer.bias + layer.weight @ shift)


def after_norm(norm: nn.LayerNorm, layer: nn.Linear) -> nn.Linear:
    """Takes what `plain(norm)` gives, as `layer` takes what `norm` gives."""
    return on_affine(layer, norm.weight, norm.bias)


def plain(norm: nn.LayerNorm) -> nn.LayerNorm:
    """The norm without its affine part."""
    return nn.LayerNorm(norm.normalized_shape, norm.eps, elementwise_affine=False)


def scaled(layer: nn.Linear, scale: Tensor) -> nn.Linear:
    """x -> scale layer(x), one factor for each output."""
    return product(layer.weight * scale[:, None], layer.bias * scale)


def stacked(layers: Sequence[nn.Linear]) -> nn.Linear:
    """The outputs of all layers side by side."""
    return product(torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers]))


def query_scaled(layer: nn.Linear, width: int, heads: int) -> nn.Linear:
    """The first `width` outputs, which are attention's q, divided by the root of a head's width."""
    scale = torch.ones_like(layer.bias)
    scale[:width] = (width // heads) ** -0.5
    return scaled(layer, scale)


def on_bytes(patch: nn.Conv2d, preprocessing: Preprocessing) -> nn.Conv2d:
    """The patch embedding of (bytes / 255 - mean) / std, taking bytes."""
    # as pixels/prepare.py has them: in fp32, repeated where there are more channels than entries
    mean, std = (torch.from_numpy(np.resize(np.float32(v), patch.in_channels)).double() for v in (preprocessing.mean, preprocessing.std))
    folded = deepcopy(patch)
    folded.weight.copy_(patch.weight / (255 * std)[:, None, None])
    assert folded.bias is not None
    folded.bias.sub_(torch.einsum("dcyx,c->d", patch.weight, mean / std))
    return folded


def on_waves(mlp: Any, width: int) -> nn.Sequential:
    """The MLP on the sine embedding `embed_boxes`, taking [all sines, all cosines] of (cx, cy, w, h)."""
    first, second = mlp.layers
    n = width // 2
    slots = torch.tensor([1, 0, 2, 3])[:, None] * n + torch.arange(0, n, 2)  # the embedding stores cy, cx, w, h
    order = torch.cat([slots.flatten(), slots.flatten() + 1])
    return nn.Sequential(product(first.weight[:, order], first.bias), nn.ReLU(), second)
