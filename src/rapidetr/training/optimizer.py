"""The optimizer and its groups: one for every pair of rate and decay that the recipe gives a parameter."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from rapidetr.checkpoints.table import names_of
from rapidetr.core.config import ModelConfig
from rapidetr.core.errors import ConfigError
from rapidetr.model.rfdetr import RfDetr
from rapidetr.training.muon import Muon
from rapidetr.training.recipe import Recipe

_NO_DECAY = ("gamma", "pos_embed", "rel_pos", "bias", "norm", "embeddings")  # by official name, encoder only

_OURS = {  # options that groups set for themselves, or that steps cannot have
    "lr": "rates are the recipe's, lr and lr_encoder",
    "weight_decay": "decay is the recipe's weight_decay, not of all parameters",
    "params": "what learns is told by stages",
    "differentiable": "steps are not differentiated",
}


def rate_and_decay(official: str, parameter: nn.Parameter, config: ModelConfig, recipe: Recipe) -> tuple[float, float]:
    """Learning rate and weight decay of the parameter that official files call `official`.

    Layered: the encoder's rate falls towards the input (BEiT's layer decay) and by the component decay squared, the
    decoder's by the component decay. Names decide, as in the official package, so that LayerScale decays and biases outside
    the encoder do, too.
    """
    if recipe.rates == "uniform":
        return recipe.lr, recipe.weight_decay if parameter.dim() > 1 else 0.0
    if official.startswith("backbone.0.encoder."):
        block = re.search(r"\.layer\.(\d+)\.", official)
        last = config.stages[-1] + 2
        place = 0 if "embeddings" in official else int(block[1]) + 1 if block else last
        rate = recipe.lr_encoder * recipe.layer_decay ** (last - place) * recipe.component_decay**2
        return rate, 0.0 if any(word in official for word in _NO_DECAY) else recipe.weight_decay
    logit_boxes = official.startswith("bbox_embed.") and not config.lite_refine  # the decoder shares this head
    in_decoder = official.startswith("transformer.decoder.") or logit_boxes
    return recipe.lr * (recipe.component_decay if in_decoder else 1), recipe.weight_decay


def parameter_groups(network: RfDetr, recipe: Recipe) -> list[dict[str, Any]]:
    """Groups for torch.optim, each with its `names` and its `base_lr`, which the schedule scales."""
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    official = names_of(network.config, [name for name, _ in network.named_parameters()])
    for name, parameter in network.named_parameters():
        rate, decay = rate_and_decay(official[name][0], parameter, network.config, recipe)
        empty = {"params": [], "names": [], "lr": rate, "base_lr": rate, "weight_decay": decay}
        group = groups.setdefault((rate, decay), empty)
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def make_optimizer(network: RfDetr, recipe: Recipe) -> Optimizer:
    """Any optimizer of torch.optim that steps without a closure on dense gradients, and Muon; ConfigError lists what there is."""
    found = {name: kind for name, kind in vars(torch.optim).items() if isinstance(kind, type) and issubclass(kind, Optimizer)}
    kinds: dict[str, Any] = {name: kind for name, kind in found.items() if name not in ("Optimizer", "LBFGS", "SparseAdam")} | {
        "Muon": Muon
    }
    if recipe.optimizer not in kinds:
        raise ConfigError(f"optimizer is {recipe.optimizer!r}; expected one of {', '.join(sorted(kinds))}")
    groups, options = parameter_groups(network, recipe), dict(recipe.optimizer_options or {})
    if refused := sorted(options.keys() & _OURS):
        raise ConfigError(f"optimizer option {', '.join(refused)}: {'; '.join(_OURS[name] for name in refused)}")
    fusible = recipe.optimizer in ("Adam", "AdamW") and next(network.parameters()).device.type in ("cpu", "cuda")
    if fusible and not options.keys() & {"foreach", "differentiable"}:  # which torch does not fuse
        options.setdefault("fused", True)  # one pass over memory
    try:
        return kinds[recipe.optimizer](groups, lr=recipe.lr, **options)
    except (TypeError, ValueError, RuntimeError, LookupError) as problem:
        raise ConfigError(f"optimizer {recipe.optimizer} with options {options} cannot be made: {problem}") from None


def set_rates(optimizer: Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def names_in(optimizer: Optimizer) -> list[str]:
    """Parameter names in the order of the optimizer's own numbering."""
    return [name for group in optimizer.param_groups for name in group["names"]]
