"""What training minimises: every layer's answers, matched with the objects of the batch.

    Output + targets -> match (one assignment per layer and group) -> losses of matched pairs, background of the rest

Everything runs in fp32 (fp64 for fp64 outputs), under autocast too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from rapidetr.core.errors import ConfigError
from rapidetr.criterion.boxes import overlap
from rapidetr.criterion.classification import KINDS, classification_loss
from rapidetr.criterion.masks import Draw, mask_costs, mask_losses
from rapidetr.criterion.matcher import Pairs, match
from rapidetr.criterion.targets import Objects, Target, pack
from rapidetr.model.outputs import FactoredMasks, LayerOutput, Output


class Losses(NamedTuple):
    """`total` is to be minimised; `terms` are its parts before their weights, `logged` more figures, both without gradient.

    Names end in nothing for the last decoder layer, in _0, _1, ... for those before it, in _enc for the proposals.
    """

    total: Tensor
    terms: dict[str, Tensor]
    logged: dict[str, Tensor]


@dataclass(frozen=True)
class Criterion:
    """Losses of RF-DETR; the defaults are the published recipe."""

    classification: str = "ia-bce"
    ce: float = 1.0
    bbox: float = 5.0
    giou: float = 2.0
    mask_ce: float = 5.0
    mask_dice: float = 5.0
    class_weights: tuple[float, ...] | None = None  # for every row of the class head: what missing such an object costs
    sum_group_losses: bool = False  # do not divide by the number of query groups

    def __post_init__(self) -> None:
        if self.classification not in KINDS:
            raise ConfigError(f"classification loss is {self.classification!r}; expected one of {', '.join(KINDS)}")

    def __call__(
        self,
        output: Output,
        targets: Sequence[Target],
        *,
        groups: int,
        normalizer: float | Tensor | None = None,
        draw: Callable[..., Tensor] = torch.rand,
    ) -> Losses:
        """Losses of a batch.

        `groups` query groups are in the output (1 in evaluation). `normalizer` is the number of objects to divide by, in
        place of this batch's own: the mean over the processes, without groups. `draw(shape, dtype=, device=)` gives the
        random points of mask losses.
        """
        with torch.autocast(output.logits.device.type, enabled=False):
            suffixes, layers = _layers(output)
            objects = pack(targets, layers[0].boxes)
            draw_like = _draw_like(draw, layers[0].boxes)
            masks = [layer.masks for layer in layers if layer.masks is not None]
            pairs = match(layers, objects, groups, mask_costs(masks, objects, draw_like) if masks else None)
            sums = self._box_sums(layers, pairs, objects)
            for layer, pair, terms in zip(layers, pairs, sums, strict=True):
                terms["loss_ce"] = self._classify(layer, pair, objects, terms.pop("iou"))
            for mask, pair, terms in zip(masks, pairs, sums, strict=False):
                terms["loss_mask_ce"], terms["loss_mask_dice"] = mask_losses(mask, pair, objects, draw_like)
            scale = 1 / self._divisor(len(objects.labels) if normalizer is None else normalizer, groups, objects.boxes)
            losses = {name + suffix: scale * value for suffix, terms in zip(suffixes, sums, strict=True) for name, value in terms.items()}
            total = torch.stack([self.weight(name) * value for name, value in losses.items()]).sum()
            return Losses(total, {name: value.detach() for name, value in losses.items()}, _logged(suffixes, layers, pairs[0], objects))

    def weight(self, name: str) -> float:
        """Factor of a term, whatever layer it is of, in the total."""
        base = name.removeprefix("loss_").removesuffix("_enc").rstrip("_0123456789")
        return float(getattr(self, base))

    def _divisor(self, count: float | Tensor, groups: int, like: Tensor) -> Tensor:
        return (torch.as_tensor(count).to(like) * (1 if self.sum_group_losses else groups)).clamp(min=1)

    def _box_sums(self, layers: list[LayerOutput], pairs: list[Pairs], objects: Objects) -> list[dict[str, Tensor]]:
        """Per layer the sums of L1 and generalised IoU losses, and the IoU of every pair."""
        found = torch.cat([layer.boxes[pair.image, pair.query] for layer, pair in zip(layers, pairs, strict=True)]).T
        wanted = objects.boxes[:, torch.cat([pair.object for pair in pairs])]
        iou, giou = overlap(found, wanted)
        sizes = [len(pair.query) for pair in pairs]
        parts = zip(*(torch.split(value, sizes) for value in ((found - wanted).abs().sum(0), 1 - giou, iou.detach())), strict=True)
        return [{"loss_bbox": l1.sum(), "loss_giou": rest.sum(), "iou": part} for l1, rest, part in parts]

    def _classify(self, layer: LayerOutput, pairs: Pairs, objects: Objects, iou: Tensor) -> Tensor:
        labels = objects.labels[pairs.object]
        matched = layer.logits[pairs.image, pairs.query, labels].to(iou.dtype)
        weights = None
        if self.class_weights is not None:
            if len(self.class_weights) != layer.logits.shape[-1]:
                given, rows = len(self.class_weights), layer.logits.shape[-1]
                raise ConfigError(f"{given} class weights for a class head of {rows} rows; give one for each row")
            weights = iou.new_tensor(self.class_weights)[labels]
        return classification_loss(self.classification, layer.logits, matched, iou, pairs.image, weights)


def finite_images(output: Output, targets: Sequence[Target]) -> list[bool]:
    """For each image, whether all its answers and boxes are numbers; to name the culprits once a loss is not finite."""
    with torch.no_grad():
        parts = [part for layer in _layers(output)[1] for part in (layer.logits, layer.boxes, *(layer.masks or ())[:2])]
        answers = torch.stack([part.isfinite().flatten(1).all(1) for part in parts]).all(0).tolist()
    return [good and bool(target.boxes.isfinite().all()) for good, target in zip(answers, targets, strict=True)]


def _layers(output: Output) -> tuple[list[str], list[LayerOutput]]:
    """Suffixes and answers: last decoder layer, the earlier ones, the proposals; boxes and masks in fp32 at least."""
    named = [("", output.layers[-1]), *((f"_{i}", layer) for i, layer in enumerate(output.layers[:-1]))]
    if output.proposals is not None:
        named.append(("_enc", output.proposals))
    return [suffix for suffix, _ in named], [_widen(layer) for _, layer in named]


def _widen(layer: LayerOutput) -> LayerOutput:
    """Logits stay as they are: they are widened where they are used, without a second copy for the backward pass."""
    masks = None if layer.masks is None else FactoredMasks(*map(_at_least_fp32, layer.masks))
    return LayerOutput(layer.logits, _at_least_fp32(layer.boxes), masks)


def _at_least_fp32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _draw_like(draw: Callable[..., Tensor], like: Tensor) -> Draw:
    return lambda shape: draw(shape, dtype=like.dtype, device=like.device)


@torch.no_grad()
def _logged(suffixes: list[str], layers: list[LayerOutput], last: Pairs, objects: Objects) -> dict[str, Tensor]:
    """class_error: percent of matched queries of the last layer whose best class is wrong (0 without any).

    cardinality_error: mean over images of |queries above a probability of one half - objects|.
    """
    best = layers[0].logits[last.image, last.query].argmax(-1)
    wrong = (best != objects.labels[last.object]).to(objects.boxes.dtype)
    logged = {"class_error": 100 * wrong.sum() / max(1, len(wrong))}
    counts = objects.boxes.new_tensor([b - a for a, b in pairwise(objects.starts)])
    for suffix, layer in zip(suffixes, layers, strict=True):
        logged["cardinality_error" + suffix] = ((layer.logits.amax(-1) > 0).sum(1) - counts).abs().mean()
    return logged
