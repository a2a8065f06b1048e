"""How fast to learn at which step: a closed form, so that there is no scheduler whose state could be lost."""

from __future__ import annotations

import math

from rapidetr.training.recipe import Recipe


def rate_factor(recipe: Recipe, step: int, steps_per_epoch: int, total_steps: int) -> float:
    """Factor of all rates at optimizer step 0..total_steps - 1: linear warm-up, then step or cosine (Loshchilov and Hutter, 2017)."""
    warmup = recipe.warmup_epochs * steps_per_epoch
    if step < warmup:
        return step / warmup
    if recipe.schedule == "step":
        return 1.0 if step < recipe.lr_drop * steps_per_epoch else 0.1
    part = (step - warmup) / max(1, total_steps - warmup)
    return recipe.min_factor + (1 - recipe.min_factor) * 0.5 * (1 + math.cos(math.pi * part))
