"""Two products with an activation between them, which keep one hidden tensor for the backward pass where autograd keeps two or three:
the widest tensors of training are hidden ones (frugal.py)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

aten = torch.ops.aten


def gelu(x: Tensor) -> Tensor:
    """Exact GELU; in place where nothing has to be kept for a backward pass, which saves one pass over memory."""
    return F.gelu(x) if torch.is_grad_enabled() else aten.gelu_(x)


def gelu_mlp(up: nn.Linear, down: nn.Linear, x: Tensor) -> Tensor:
    """down(GELU(up(x))), exact GELU."""
    return _frugal(up, down, x, False) if torch.is_grad_enabled() else down(aten.gelu_(up(x)))


def relu_mlp(up: nn.Linear, down: nn.Linear, x: Tensor) -> Tensor:
    """down(ReLU(up(x)))."""
    return _frugal(up, down, x, True) if torch.is_grad_enabled() else down(F.relu_(up(x)))


def _frugal(up: nn.Linear, down: nn.Linear, x: Tensor, rectify: bool) -> Tensor:
    from rapidetr.model.frugal import TwoProducts

    parts: tuple[Tensor, ...] = (x, up.weight, up.bias, down.weight, down.bias)
    device = x.device.type
    # as autocast does around each product
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        parts = tuple(part.to(torch.get_autocast_dtype(device)) for part in parts)
    result: Tensor = TwoProducts.apply(*parts, rectify)
    return result
