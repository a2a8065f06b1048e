"""What is wide and quickly computed is computed again for the backward pass, not kept. Only training imports this.

`TwoProducts` and `MixedSamples` are the plain expressions bit by bit, the same kernels on the same numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from rapidetr.model.deformable import planes, take

aten = torch.ops.aten
PIECE = 2**20  # attention probabilities at a time, of at most MOST heads: caches hold them
MOST = 16


class TwoProducts(torch.autograd.Function):
    """down(activation(up(x))); GELU is computed again, gradients of the hidden tensor are made in the memory of one."""

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


class AttentionInPieces(torch.autograd.Function):
    """softmax(q k^T) v of [heads, N, d]; a few heads at a time, probabilities computed again for the backward pass."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        return torch.cat([_chances(q[part], k[part]) @ v[part] for part in _pieces(q)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        q, k, v = ctx.saved_tensors
        found = []
        for part in _pieces(q):
            chances = _chances(q[part], k[part])
            of_chances = gradient[part] @ v[part].mT
            of_scores = aten._softmax_backward_data(of_chances, chances, -1, chances.dtype)
            found.append((of_scores @ k[part], of_scores.mT @ q[part], chances.mT @ gradient[part]))
        return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def _chances(q: Tensor, k: Tensor) -> Tensor:
    chances: Tensor = aten._softmax(q @ k.mT, -1, False)  # autocast would have it in float32
    return chances


def _pieces(q: Tensor) -> list[slice]:
    step = max(1, min(MOST, PIECE // q.shape[1] ** 2))
    return [slice(i, i + step) for i in range(0, len(q), step)]


class MixedSamples(torch.autograd.Function):
    """Samples are the widest tensors of the decoder and quickly taken: they are taken again for the backward pass, not kept."""

    @staticmethod
    def forward(ctx: Any, values_BMdS: Tensor, grid: Tensor, weights_BMKQ: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
        ctx.save_for_backward(values_BMdS, grid, weights_BMKQ)
        ctx.shapes = shapes
        return take(values_BMdS, grid, shapes).mul_(weights_BMKQ.unsqueeze(2)).sum(3)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BMdQ: Tensor) -> tuple[Tensor | None, ...]:
        values_BMdS, grid, weights_BMKQ = ctx.saved_tensors
        gradient = gradient_BMdQ.contiguous().unsqueeze(3)
        of_weights = take(values_BMdS, grid, ctx.shapes).mul_(gradient).sum(2)
        P, Q = grid.shape[2:4]
        found = []
        for level, plane in enumerate(planes(values_BMdS, ctx.shapes)):
            weights = weights_BMKQ[:, :, level * P : (level + 1) * P].unsqueeze(2)
            of_samples = (gradient * weights).reshape(*plane.shape[:2], P, Q)
            found.append(aten.grid_sampler_2d_backward(of_samples, plane, grid[:, level], 0, 0, False, [True, True]))
        of_values = torch.cat([plane.flatten(2) for plane, _ in found], dim=2).view_as(values_BMdS)
        return of_values, torch.stack([part for _, part in found], dim=1), of_weights, None
