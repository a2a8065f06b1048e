"""Two products with an activation between them, which keep one hidden tensor for the backward pass where autograd keeps two or three.

The widest tensors of training are hidden ones. GELU is computed again from what went into it, and gradients of the hidden tensor
are made in the memory of one. The same kernels on the same numbers: results are those of the plain expression, bit by bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
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
    parts: tuple[Tensor, ...] = (x, up.weight, up.bias, down.weight, down.bias)
    device = x.device.type
    # as autocast does around each product
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        parts = tuple(part.to(torch.get_autocast_dtype(device)) for part in parts)
    return _Mlp.apply(*parts, rectify)


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, up: Tensor, up_bias: Tensor, down: Tensor, down_bias: Tensor, rectify: bool) -> Tensor:
        hidden = F.linear(x, up, up_bias)
        active = F.relu_(hidden) if rectify else F.gelu(hidden)
        ctx.rectify = rectify
        ctx.save_for_backward(x, hidden, up, down)
        return F.linear(active, down, down_bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, up, down = ctx.saved_tensors
        x_grad = up_grad = up_bias_grad = down_grad = down_bias_grad = None
        of_x, of_up, of_up_bias, of_down, of_down_bias = ctx.needs_input_grad[:5]
        rows, hidden = gradient.flatten(0, -2), hidden.flatten(0, -2)
        if of_down:
            down_grad = rows.t() @ (hidden if ctx.rectify else F.gelu(hidden))
        if of_down_bias:
            down_bias_grad = rows.sum(0)
        if of_x or of_up or of_up_bias:
            inner = rows @ down
            if ctx.rectify:
                aten.threshold_backward.grad_input(inner, hidden, 0, grad_input=inner)
            else:
                aten.gelu_backward.grad_input(inner, hidden, grad_input=inner)
            x_grad = (inner @ up).view_as(x) if of_x else None
            up_grad = inner.t() @ x.flatten(0, -2) if of_up else None
            up_bias_grad = inner.sum(0) if of_up_bias else None
        return x_grad, up_grad, up_bias_grad, down_grad, down_bias_grad, None
