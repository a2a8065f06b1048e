"""Mask costs and losses at random points; mask logits exist for one image (cost) or for matched pairs (loss) only.

PointRend (Kirillov et al., 2020) as Mask2Former (Cheng et al., 2022) uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from rapidetr.core.errors import ConfigError
from rapidetr.criterion.matcher import Pairs
from rapidetr.criterion.targets import Objects
from rapidetr.model.outputs import FactoredMasks

Draw = Callable[[tuple[int, ...]], Tensor]  # shape -> uniform numbers in [0, 1)
CROSS_ENTROPY_COST, DICE_COST = 5.0, 5.0
PIECE = 2**24  # mask logits that may wait for the backward pass; beyond, they are computed again


@torch.no_grad()
def mask_costs(layers: Sequence[FactoredMasks], objects: Objects, draw: Draw) -> Tensor:
    """[T, queries of all layers]: cross entropy and Dice of each object's mask with those of its image, at a 16th of the pixels.

    The points are drawn once a layer. One image of one layer at a time: queries x points numbers.
    """
    costs = []
    for masks in layers:
        height, width = masks.pixels.shape[-2:]
        points = draw((1, height * width // 16, 2))
        pixels = _bilinear(masks.pixels, points.expand(len(masks.pixels), -1, -1))
        costs.append(torch.cat([_image_costs(masks, pixels, objects, points, i) for i in range(len(pixels))]))
    return torch.cat(costs, dim=1)


def _image_costs(masks: FactoredMasks, pixels: Tensor, objects: Objects, points: Tensor, image: int) -> Tensor:
    """[n, Q] of one image from pixel features [B, d, P] at the points."""
    start, stop = objects.starts[image], objects.starts[image + 1]
    if start == stop:
        return pixels.new_empty(0, masks.queries.shape[1])
    logits = masks.queries[image] @ pixels[image] + masks.bias
    inside = sample_targets(objects, image, torch.arange(start, stop, device=logits.device), points).to(logits.dtype)
    cross_entropy = (F.softplus(logits).sum(1) - inside @ logits.T) / points.shape[1]
    p = logits.sigmoid()
    dice = 1 - (2 * inside @ p.T + 1) / (p.sum(1) + inside.sum(1, keepdim=True) + 1)
    return CROSS_ENTROPY_COST * cross_entropy + DICE_COST * dice


def mask_losses(masks: FactoredMasks, pairs: Pairs, objects: Objects, draw: Draw) -> tuple[Tensor, Tensor]:
    """Sums over matched pairs of cross entropy and Dice, at the uncertain three quarters of the points and a random rest."""
    height, width = masks.pixels.shape[-2:]
    count, total = len(pairs.query), max(height, height * width // 16)
    candidates, rest = draw((count, 3 * total, 2)), draw((count, total - total * 3 // 4, 2))
    if not count:  # connected to all parameters still, or distributed training waits for their gradients forever
        nothing = 0 * (masks.pixels.sum() + masks.queries.sum() + masks.bias.sum())
        return nothing, nothing
    rows = max(1, PIECE // (height * width))
    again = partial(checkpoint, _pair_sums, use_reentrant=False, preserve_rng_state=False)
    compute = again if count > rows else _pair_sums
    sums, first = [], 0
    for image, (pixels, queries, pairs_here) in enumerate(zip(masks.pixels.unbind(0), masks.queries.unbind(0), pairs.counts, strict=True)):
        for low in range(first, first + pairs_here, rows):
            part = slice(low, min(low + rows, first + pairs_here))
            places = candidates[part], rest[part]
            sums.append(compute(pixels, queries[pairs.query[part]], masks.bias, objects, image, pairs.object[part], *places))
        first += pairs_here
    cross_entropy, dice = torch.stack(sums).sum(0).unbind(0)
    return cross_entropy, dice


def _pair_sums(
    pixels: Tensor, queries: Tensor, bias: Tensor, objects: Objects, image: int, rows: Tensor, candidates: Tensor, rest: Tensor
) -> Tensor:
    """[2]: sums of cross entropy and Dice over M pairs of one image; `rows` [M] of Objects, points [M, P, 2]."""
    logits = (queries @ pixels.flatten(1) + bias).view(len(queries), 1, *pixels.shape[1:])
    points = torch.cat([_most_uncertain(logits.detach(), candidates, candidates.shape[1] // 3 - rest.shape[1]), rest], dim=1)
    target = sample_targets(objects, image, rows, points).to(logits.dtype)
    z = _bilinear(logits, points)[:, 0]
    p = z.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(z, target, reduction="none").mean(1)
    dice = 1 - (2 * (p * target).sum(1) + 1) / (p.sum(1) + target.sum(1) + 1)
    return torch.stack([cross_entropy.sum(), dice.sum()])


def _most_uncertain(logits: Tensor, points: Tensor, count: int) -> Tensor:
    """The `count` points of each pair at which its logits [M, 1, h, w] are nearest to 0."""
    best = _bilinear(logits, points)[:, 0].abs().topk(count, dim=1, largest=False, sorted=False).indices
    return points.gather(1, best[:, :, None].expand(-1, -1, 2))


def _bilinear(maps: Tensor, points: Tensor) -> Tensor:
    """[N, c, P]: maps [N, c, h, w] at points [N, P, 2], x and y from 0 to 1 over the whole map, border values beyond."""
    return F.grid_sample(maps, 2 * points[:, None] - 1, padding_mode="border", align_corners=False)[:, :, 0]


def sample_targets(objects: Objects, image: int, rows: Tensor, points: Tensor) -> Tensor:
    """bool [M, P]: masks of Objects `rows` [M], all of one image, in the pixels nearest to points [M or 1, P, 2]."""
    masks = objects.masks[image]
    if masks is None:
        raise ConfigError(f"image {image} of the batch has boxes but no masks; a segmentation model is trained on masks")
    x, y = ((points[..., i] * masks.shape[2 - i] - 0.5).round_().clamp_(0, masks.shape[2 - i] - 1).long() for i in (0, 1))
    return masks[rows[:, None] - objects.starts[image], y, x]
