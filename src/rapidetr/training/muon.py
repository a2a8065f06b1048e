"""Muon: hidden matrices learn by an orthogonalized momentum, everything else by AdamW.

K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024), with the scale of J. Liu et al., "Muon is
scalable for LLM training" (2025): an update of root mean square 0.2, so that AdamW's learning rates fit, times `factor`.
From random weights a small network needed 0.6 of the steps that AdamW needed, in one trial (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan's coefficients: singular values come to 0.7..1.2 in five steps
_LEAST_SIDE = 32  # thinner matrices, such as the last layers of heads, are no hidden ones
_NOT_HIDDEN = ("patch", "positions", "query_content", "class")  # by name: what reads pixels, what is looked up, what gives classes


class Muon(Optimizer):
    """Groups carry `names` beside `params`. Fused q, k and v are three matrices; a convolution is one of [out, in*h*w]."""

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float = 4e-4,
        *,
        factor: float = 2.0,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        for name, value in (("momentum", momentum), ("first beta", betas[0]), ("second beta", betas[1])):
            if not 0 <= value < 1:
                raise ValueError(f"{name} is {value}; expected 0 up to, not including, 1")
        defaults = {"lr": lr, "factor": factor, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # no closure, as everywhere here
        for group in self.param_groups:
            for name, parameter in zip(group["names"], group["params"], strict=True):
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    (self._turn if is_hidden(name, parameter) else self._adam)(name, parameter, parameter.grad, group)

    def _turn(self, name: str, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(gradient, 1 - group["momentum"])
        ahead = gradient.lerp(state["momentum"], group["momentum"]).flatten(1)  # Nesterov
        parts = ahead.chunk(3 if name.endswith("qkv.weight") else 1)
        update = torch.cat([orthogonalize(part) for part in parts]).view_as(parameter)
        scale = 0.2 * max(parts[0].shape) ** 0.5 * group["factor"]
        parameter.add_(update, alpha=-group["lr"] * scale)

    def _adam(self, name: str, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """D. Kingma and J. Ba, "Adam" (2015), algorithm 1."""
        state, (b1, b2) = self.state[parameter], group["betas"]
        if not state:
            state |= {"step": torch.zeros(()), "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
        state["step"] += 1
        n = float(state["step"])
        state["exp_avg"].lerp_(gradient, 1 - b1)
        state["exp_avg_sq"].mul_(b2).addcmul_(gradient, gradient, value=1 - b2)
        width = (state["exp_avg_sq"] / (1 - b2**n)).sqrt_().add_(group["eps"])
        parameter.addcdiv_(state["exp_avg"], width, value=-group["lr"] / (1 - b1**n))


def is_hidden(name: str, parameter: Tensor) -> bool:
    """Whether it is a matrix from features to features, by our name of it and its shape."""
    if parameter.dim() < 2 or any(word in name for word in _NOT_HIDDEN):
        return False
    return min(parameter.shape[0], parameter[0].numel()) >= _LEAST_SIDE


def orthogonalize(matrix: Tensor, steps: int = 5) -> Tensor:
    """The matrix with its singular values moved near 1 (0.7 to 1.2; exactly zero ones stay) by Newton-Schulz iterations.

    In the matrix's own precision: torch.optim.Muon rounds to bfloat16, which processors without it compute very slowly.
    """
    a, b, c = _QUINTIC
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x
