"""Networks from names, with fresh weights; every width from the configuration."""

from __future__ import annotations

import math

import torch
from torch import nn

from rapidetr.core.config import ModelConfig, variant
from rapidetr.core.errors import ConfigError
from rapidetr.model.deformable import DeformableAttention
from rapidetr.model.rfdetr import RfDetr


def build(
    model: str | ModelConfig, *, num_classes: int | None = None, size_hw: tuple[int, int] | None = None, seed: int | None = None
) -> RfDetr:
    """A freshly initialised network (a plain nn.Module) in training mode.

    `num_classes` counts classes; the head gets one row more, as official fine-tuned heads have. `seed` makes the weights
    reproducible without touching torch's global random state.
    """
    config = variant(model) if isinstance(model, str) else model
    if num_classes is not None and not 1 <= num_classes <= 100_000:
        raise ConfigError(f"num_classes is {num_classes}; expected 1 to 100000")
    config = config.at(size_hw=size_hw, class_rows=None if num_classes is None else num_classes + 1)
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        network = RfDetr(config)
        initialize(network)
    return network


def build_empty(config: ModelConfig) -> RfDetr:
    """The network without memory for its weights (meta device), to be filled from a file."""
    with torch.device("meta"):
        return RfDetr(config)


def initialize(network: RfDetr) -> None:
    """Fresh weights as official training from scratch starts with them."""
    for group in network.proposals.groups:
        _xavier(group)
    _xavier(network.decoder)
    for part in network.decoder.modules():
        if isinstance(part, DeformableAttention):
            part.reset()
    for layer in network.decoder.layers:
        nn.init.zeros_(layer.self_attention.qkv.bias)
        nn.init.zeros_(layer.self_attention.out.bias)
    nn.init.constant_(network.class_head.bias, -math.log(99))  # every class starts at a probability of 1 %
    nn.init.zeros_(network.box_head.layers[-1].weight)
    nn.init.zeros_(network.box_head.layers[-1].bias)
    for group in network.proposals.groups:
        group.classes.load_state_dict(network.class_head.state_dict())
        group.boxes.load_state_dict(network.box_head.state_dict())
    nn.init.zeros_(network.query_boxes)
    nn.init.normal_(network.query_content)
    _initialize_vit(network.vit)


def _xavier(module: nn.Module) -> None:
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)


def _initialize_vit(vit: nn.Module) -> None:
    """Truncated normal 0.02 for weights, class token and positions; biases 0; norms and LayerScale 1 and 0."""
    for name, parameter in vit.named_parameters():
        if name.endswith(("mask_token", "registers", "bias")):
            nn.init.zeros_(parameter)
        elif parameter.dim() > 1:
            nn.init.trunc_normal_(parameter, std=0.02)
        else:
            nn.init.ones_(parameter)
