"""Where to look first: the encoder's own guesses, from which every query starts."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from rapidetr.core.config import ModelConfig
from rapidetr.model.boxes import Mlp, refine


class Proposals(NamedTuple):
    """The best K tokens of each group, group by group, best first."""

    logits: Tensor  # [B, G * K, C]
    boxes: Tensor  # [B, G * K, 4]; in logit space for networks without re-parametrised boxes
    content: Tensor  # [B, G * K, d] encoder features of the tokens
    tokens: Tensor  # [B, G * K] which token of the memory


def anchor_boxes(shapes: list[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """One box [S, 4] for each token (cell centre, side 0.05 * 2^level) and whether it is valid [S].

    A box is valid if all its numbers lie strictly between 0.01 and 0.99: on grids of 50 cells and more the outermost ring
    is not. Always computed in fp32, in a fp64 network too: that is what the published numbers were made with.
    """
    dtype = torch.float32
    levels = []
    for level, (h, w) in enumerate(shapes):
        y = (torch.arange(h, device=device, dtype=dtype) + 0.5) / h
        x = (torch.arange(w, device=device, dtype=dtype) + 0.5) / w
        cy, cx = torch.meshgrid(y, x, indexing="ij")
        side = torch.full_like(cx, 0.05 * 2.0**level)
        levels.append(torch.stack([cx, cy, side, side], dim=-1).view(-1, 4))
    boxes_S4 = torch.cat(levels)
    return boxes_S4, ((boxes_S4 > 0.01) & (boxes_S4 < 0.99)).all(-1)


class GroupHead(nn.Module):
    """The proposal heads of one query group."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.width
        self.linear = nn.Linear(d, d)
        self.norm = nn.LayerNorm(d)
        self.classes = nn.Linear(d, config.class_rows)
        self.boxes = Mlp(d, d, d, 4)

    def forward(self, memory_BSd: Tensor, anchors_S4: Tensor, count: int, reparam: bool) -> Proposals:
        encoded_BSd = self.norm(self.linear(memory_BSd))
        logits_BSC = self.classes(encoded_BSd)
        index_BK = logits_BSC.amax(-1).topk(count, dim=1).indices
        content_BKd = _rows(encoded_BSd, index_BK)
        boxes_BK4 = refine(anchors_S4[index_BK], self.boxes(content_BKd), reparam)
        return Proposals(_rows(logits_BSC, index_BK), boxes_BK4, content_BKd, index_BK)


class ProposalHeads(nn.Module):
    """Memory [B, S, d] -> Proposals of the first `groups` groups."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.reparam = config.box_reparam
        self.groups = nn.ModuleList(GroupHead(config) for _ in range(config.groups))

    def forward(self, memory_BSd: Tensor, shapes: list[tuple[int, int]], queries: int, groups: int) -> Proposals:
        anchors_S4, valid_S = anchor_boxes(shapes, memory_BSd.device)
        if min(min(s) for s in shapes) >= 50 or max(max(s) for s in shapes) >= 50:
            memory_BSd = memory_BSd * valid_S[:, None]
        if self.reparam:
            anchors_S4 = anchors_S4 * valid_S[:, None]
        else:
            anchors_S4 = (anchors_S4 / (1 - anchors_S4)).log().masked_fill(~valid_S[:, None], torch.inf)
        count = min(queries, memory_BSd.shape[1])
        parts = [head(memory_BSd, anchors_S4, count, self.reparam) for head in self.groups[:groups]]
        return parts[0] if len(parts) == 1 else Proposals(*(torch.cat(p, dim=1) for p in zip(*parts, strict=True)))


def _rows(x_BSd: Tensor, index_BK: Tensor) -> Tensor:
    return x_BSd.gather(1, index_BK[..., None].expand(-1, -1, x_BSd.shape[-1]))
