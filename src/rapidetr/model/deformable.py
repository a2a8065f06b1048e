"""Multi-scale deformable attention (Deformable DETR, Zhu et al., 2020): every query looks at a few points of the memory."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rapidetr.core.config import ModelConfig
from rapidetr.model.boxes import exact


class DeformableAttention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, M, L, P = config.width, config.cross_heads, len(config.levels), config.points
        self.heads, self.points = M, P
        self.offsets = nn.Linear(d, M * L * P * 2)
        self.weights = nn.Linear(d, M * L * P)
        self.values = nn.Linear(d, d)
        self.out = nn.Linear(d, d)
        self.levels = L

    def forward(self, query_BQd: Tensor, boxes_BQ4: Tensor, memory_BSd: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
        """Points lie around the centre of each query's box, offsets counted in halves of its size."""
        B, Q, d = query_BQd.shape
        M, L, P = self.heads, self.levels, self.points
        offsets = exact(self.offsets(query_BQd)).view(B, Q, M, L, P, 2)
        weights = exact(self.weights(query_BQd)).view(B, Q, M, L * P).softmax(-1)
        box = boxes_BQ4[:, :, None, None, None]
        where = box[..., :2] + offsets * (box[..., 2:] * (0.5 / P))
        values_BMdS = self.values(memory_BSd).view(B, -1, M, d // M).permute(0, 2, 3, 1)
        mixed = mix(values_BMdS, where, weights.permute(0, 2, 3, 1), shapes)
        return self.out(mixed.flatten(1, 2).transpose(1, 2).to(query_BQd.dtype))

    def reset(self) -> None:
        """Points start on rays around the centre, one direction a head, all weights equal."""
        nn.init.zeros_(self.offsets.weight)
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        ray = torch.stack([angle.cos(), angle.sin()], -1)
        ray = ray / ray.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.points + 1)
        bias = (ray[:, None, None] * steps[:, None]).expand(-1, self.levels, -1, -1)
        with torch.no_grad():
            self.offsets.bias.copy_(bias.reshape(-1))
        for zero in (self.weights.weight, self.weights.bias, self.values.bias, self.out.bias):
            nn.init.zeros_(zero)
        nn.init.xavier_uniform_(self.values.weight)
        nn.init.xavier_uniform_(self.out.weight)


def mix(values_BMdS: Tensor, where_BQMLP2: Tensor, weights_BMKQ: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
    """Weighted sums [B, M, d/M, Q] of the samples at the K = L * P points of every query and head."""
    if torch.is_grad_enabled() and values_BMdS.requires_grad:
        from rapidetr.model.frugal import MixedSamples

        mixed: Tensor = MixedSamples.apply(exact(values_BMdS), _grid(where_BQMLP2), weights_BMKQ.contiguous(), shapes)
        return mixed
    return (sample(values_BMdS, where_BQMLP2, shapes) * weights_BMKQ.unsqueeze(2)).sum(3)


def sample(values_BMdS: Tensor, where_BQMLP2: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
    """Bilinear samples [B, M, d/M, L * P, Q] at points in units of the picture; outside the map counts as zero."""
    values = exact(values_BMdS)  # half precision on CPU has returned NaN from non-contiguous maps (torch 2.13)
    return take(values, _grid(where_BQMLP2).to(values.dtype), shapes)


def _grid(where_BQMLP2: Tensor) -> Tensor:
    """[B * M, L, P, Q, 2] as grid_sample counts, -1 to 1; queries last: the sum over points then runs along whole rows."""
    B, Q, M, L, P, _ = where_BQMLP2.shape
    return (where_BQMLP2 * 2 - 1).permute(0, 2, 3, 4, 1, 5).reshape(B * M, L, P, Q, 2)


def planes(values_BMdS: Tensor, shapes: list[tuple[int, int]]) -> list[Tensor]:
    """The map [B * M, d/M, h, w] of every level."""
    parts = values_BMdS.split([h * w for h, w in shapes], dim=-1)
    return [part.reshape(-1, part.shape[2], h, w) for part, (h, w) in zip(parts, shapes, strict=True)]


def take(values_BMdS: Tensor, grid: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
    B, M, dh, _ = values_BMdS.shape
    samples = [
        F.grid_sample(plane, grid[:, level], mode="bilinear", padding_mode="zeros", align_corners=False)
        for level, plane in enumerate(planes(values_BMdS, shapes))
    ]
    joined = samples[0] if len(samples) == 1 else torch.cat(samples, dim=-2)
    return joined.view(B, M, dh, -1, grid.shape[3])
