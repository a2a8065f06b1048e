"""Gradient checkpointing: what the encoder keeps for the backward pass, counted tensor by tensor; the numbers stay the same."""

from __future__ import annotations

import cases
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from rapidetr.model.vit import Vit


def kept_bytes(vit: Vit, images: Tensor) -> tuple[int, list[Tensor]]:
    """What a forward pass keeps besides weights, each piece of memory once; and the gradients of all weights."""
    weights = {p.untyped_storage().data_ptr() for p in vit.parameters()}
    sizes: dict[int, int] = {}
    alive = []  # or another tensor could come to lie at the same address

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        total = sum(feature.square().sum() for feature in vit(images))
    assert isinstance(total, Tensor)
    learning: list[nn.Parameter] = [p for p in vit.parameters() if p.requires_grad]
    return sum(sizes.values()), list(torch.autograd.grad(total, learning))


def test_checkpointing_keeps_one_input_a_block() -> None:
    vit, images = cases.network("tiny_det").vit.train(), cases.images("tiny_det")
    usual, gradients = kept_bytes(vit, images)
    vit.checkpointing = True
    fewer, again = kept_bytes(vit, images)
    assert all(torch.equal(a, b) for a, b in zip(gradients, again, strict=True))  # the same sums in the same order
    config = cases.config_of("tiny_det")
    tokens = images.shape[0] * ((64 // config.patch_size) ** 2 + config.windows**2)
    inputs = config.vit_depth * 4 * tokens * config.vit_width
    assert fewer < usual / 4
    assert inputs < fewer < 3 * inputs  # one input a block; patches, norms and squares of the taken features
