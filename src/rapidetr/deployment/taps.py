"""Where a network can be looked into. The names are those of its weights, and the same in torch and in exported files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rapidetr.model.fold import Folded
from rapidetr.model.rfdetr import RfDetr

BLOCKS, LEVELS, LAYERS = "vit.blocks", "projector.levels", "decoder.layers"
SCORES, TOKENS, STARTS = "proposals.scores", "proposals.tokens", "proposals.boxes"


@contextmanager
def recorded(network: RfDetr | Folded, start_from: Tensor | None = None) -> Iterator[dict[str, Tensor]]:
    """A dict that every forward inside fills: tap -> value, in the order in which one follows from another.

    vit.blocks.i [B, all tokens, D] in window order · projector.levels.i [B, d, h, w] · proposals.scores [B, S], the best logit of
    each token · proposals.tokens [B, K], the best K, best first · proposals.boxes [B, K, 4], what is added to their anchors ·
    decoder.layers.i [B, Q, d] before the norm. `start_from` [B, K] are tokens that the queries start from instead of the best.
    """
    parts: Any = network
    plain = isinstance(network, RfDetr)
    blocks, levels, layers = (
        (parts.vit.blocks, parts.projector.levels, parts.decoder.layers) if plain else (parts.encoder.blocks, parts.levels, parts.layers)
    )
    head = parts.proposals.groups[0] if plain else parts.proposals
    seen: dict[str, Tensor] = {}
    pictures: list[Any] = [1]

    def keep(name: str, view: Callable[[Any], Tensor]) -> Callable[..., None]:
        return lambda module, inputs, output: seen.__setitem__(name, view(output))

    def choose(module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        seen[SCORES] = seen[TOKENS] = output.amax(-1)  # tokens come after boxes otherwise, which follow from them
        return None if start_from is None else _preferring(output, start_from.to(output.device))

    handles = [
        parts.register_forward_pre_hook(lambda module, inputs: pictures.__setitem__(0, inputs[0].shape[0])),
        head.classes.register_forward_hook(choose),
        head.boxes.register_forward_hook(keep(STARTS, lambda x: x)),
        parts.proposals.register_forward_hook(keep(TOKENS, lambda x: x.tokens if plain else x[0])),
    ]
    for i, block in enumerate(blocks):
        handles.append(block.register_forward_hook(keep(f"{BLOCKS}.{i}", lambda x: x.reshape(pictures[0], -1, x.shape[-1]))))
    for name, modules in ((LEVELS, levels), (LAYERS, layers)):
        handles += [module.register_forward_hook(keep(f"{name}.{i}", lambda x: x)) for i, module in enumerate(modules)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _preferring(logits_BSC: Tensor, tokens_BK: Tensor) -> Tensor:
    """Logits whose best K tokens are these, in this order; fp32, in which whole numbers stay apart."""
    best_first = torch.arange(tokens_BK.shape[1], 0, -1, dtype=torch.float32, device=logits_BSC.device).expand(tokens_BK.shape)
    scores_BS = torch.zeros(logits_BSC.shape[:2], device=logits_BSC.device).scatter(1, tokens_BK, best_first)
    return scores_BS[..., None].expand(logits_BSC.shape)


class Tapped(nn.Module):
    """What a module gives, then its taps in the order of `names`, which are known after the first forward."""

    def __init__(self, module: nn.Module, folded: Folded) -> None:
        super().__init__()
        self.module, self.folded = module, folded
        self.names: tuple[str, ...] = ()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        with recorded(self.folded) as seen:
            answers = self.module(images)
        self.names = tuple(seen)
        return (*answers, *seen.values())
