"""A running average of the weights, which is usually the better model."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from rapidetr.model.rfdetr import RfDetr
from rapidetr.training.recipe import Recipe


def decay_at(recipe: Recipe, update: int) -> float:
    """How much of the average stays at update 1, 2, ...; the first is a plain copy.

    official: decay * (1 - e^(-n / tau)) · ratio: min(decay, (1 + n) / (10 + n)), as TensorFlow's averages warm up.
    """
    if update == 1:
        return 0.0
    if recipe.ema_warmup == "ratio":
        return min(recipe.ema_decay, (1 + update) / (10 + update))
    return recipe.ema_decay * (1 - math.exp(-update / recipe.ema_tau) if recipe.ema_tau else 1)


class Average:
    """Follows a network's learning parameters; those that are frozen keep the value that they have here."""

    def __init__(self, network: RfDetr) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self.updates = 0

    @torch.no_grad()
    def update(self, network: RfDetr, recipe: Recipe) -> None:
        self.updates += 1
        pairs = [(mine, new) for mine, new in zip(self.network.parameters(), network.parameters(), strict=True) if new.requires_grad]
        average: list[Tensor] = [mine for mine, _ in pairs]
        torch._foreach_lerp_(average, [new for _, new in pairs], 1 - decay_at(recipe, self.updates))
