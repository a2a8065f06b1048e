"""Which query answers for which object: the cheapest one-to-one assignment in every query group of every layer.

Memory: the costs of a call are 4 bytes * objects * queries of all layers (Nano: 47 kB an object, 37 MB for 800 of them);
what they are computed from is cut into pieces of PIECE elements, about 32 MB together, however many objects there are.
Mask costs are a second matrix of that size while both are added.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rapidetr.core.errors import BackendMissing, ConfigError
from rapidetr.criterion.boxes import overlap
from rapidetr.criterion.targets import Objects
from rapidetr.model.outputs import LayerOutput

CLASS_COST, BOX_COST, GIOU_COST = 2.0, 5.0, 2.0
PIECE = 2**19  # elements of one intermediate result: 2 MB, which caches hold


class Pairs(NamedTuple):
    """M matched pairs of one layer, image by image, group by group, by rising query."""

    image: Tensor  # [M]
    query: Tensor  # [M]
    object: Tensor  # [M] rows of Objects
    counts: list[int]  # pairs of each image


@torch.no_grad()
def match(layers: Sequence[LayerOutput], objects: Objects, groups: int, mask_costs: Tensor | None = None) -> list[Pairs]:
    """Pairs of each layer; each object is matched once in every group, as long as the group has queries left.

    `mask_costs` [T, queries of all layers] are added. One transfer to the host and one back, for all layers.
    """
    widths = [layer.logits.shape[1] for layer in layers]
    for width in widths:
        if width % groups:
            raise ConfigError(f"{width} queries do not divide into {groups} groups; pass the groups that the forward pass was asked for")
    costs = _costs(layers, objects, max(1, PIECE // sum(widths)))
    if mask_costs is not None:
        costs += mask_costs
    found = _assign(_finite(costs.cpu().numpy()), objects.starts, widths, groups)
    rows = torch.from_numpy(np.concatenate([part for layer in found for part in layer], axis=1)).to(objects.image.device)
    counts = [[part.shape[1] for part in layer] for layer in found]
    parts = torch.split(rows, [sum(layer) for layer in counts], dim=1)
    return [Pairs(part[0], part[1], part[2], layer) for part, layer in zip(parts, counts, strict=True)]


def _costs(layers: Sequence[LayerOutput], objects: Objects, rows: int) -> Tensor:
    """[T, queries of all layers] of each object against the queries of its own image, `rows` objects at a time."""
    boxes = torch.cat([layer.boxes for layer in layers], dim=1).permute(2, 0, 1).contiguous()
    costs = boxes.new_empty(len(objects.labels), boxes.shape[2])
    for low in range(0, len(costs), rows):
        part = slice(low, low + rows)
        image, label, wanted = objects.image[part], objects.labels[part], objects.boxes[:, part, None]
        near = boxes.index_select(1, image)
        logits = torch.cat([layer.logits[image, :, label] for layer in layers], dim=1).to(boxes.dtype)
        cost = CLASS_COST * _focal_gain(logits) - GIOU_COST * overlap(near, wanted)[1]
        costs[part] = cost.add_((near - wanted).abs_().sum(0), alpha=BOX_COST)
    return costs


def _focal_gain(logits: Tensor) -> Tensor:
    """Focal loss (Lin et al., 2017; alpha 0.25, gamma 2) of calling this the class, less that of not calling it so."""
    p = logits.sigmoid()
    background = F.softplus(logits)  # = -log(1 - p); -log p is this less the logit
    return 0.25 * (1 - p).square() * (background - logits) - 0.75 * p.square() * background


def _finite(costs: np.ndarray) -> np.ndarray:
    """Entries that are no numbers become larger than all others, so that a broken image cannot stop a long run."""
    good = np.isfinite(costs)
    if good.all():
        return costs
    kept = costs[good]
    return np.where(good, costs, kept.max() + np.abs(kept).max() + 1 if kept.size else 0)


def _assign(costs: np.ndarray, starts: list[int], widths: list[int], groups: int) -> list[list[np.ndarray]]:
    """int64 [3, M] of image, query and object, for every layer and image."""
    solve = _solver()
    layers, first = [], 0
    for width in widths:
        size, images = width // groups, []
        for image, (start, stop) in enumerate(pairwise(starts)):
            pairs = [np.empty((2, 0), np.int64)]
            for group in range(groups if stop > start else 0):
                low = first + group * size
                rows, columns = solve(costs[start:stop, low : low + size])
                order = columns.argsort()
                pairs.append(np.stack([columns[order] + group * size, rows[order] + start]))
            joined = np.concatenate(pairs, axis=1)
            images.append(np.concatenate([np.full((1, joined.shape[1]), image), joined]))
        layers.append(images)
        first += width
    return layers


def _solver() -> Any:
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        raise BackendMissing("matching objects to queries needs scipy; install it with: pip install 'rapidetr[train]'") from None
    return linear_sum_assignment
