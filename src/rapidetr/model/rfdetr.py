"""RF-DETR, the whole network in one forward.

    images [B, 3, H, W]
      └─ Vit            windowed DINOv2, four feature maps [B, D, h, w]
          └─ Projector  levels [B, d, h_l, w_l]  ──────────────┐ flattened: memory [B, S, d]
              └─ ProposalHeads  best K tokens → boxes          │
                  └─ learned queries refine those boxes        │
                      └─ Decoder (L layers) ←──────────────────┤
                          ├─ class head   logits [B, Q, C]     │
                          ├─ box head     boxes  [B, Q, 4]     │
                          └─ MaskHead     masks  [B, Q, H/4, W/4] (segmentation)

Training asks for all query groups and every layer by argument; evaluation, export and everything else run the same code
with one group. The decoder may stop after any layer and use fewer queries than it was trained with.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rapidetr.core.config import ModelConfig
from rapidetr.core.errors import ConfigError
from rapidetr.model.boxes import Mlp, exact, refine
from rapidetr.model.decoder import Decoder
from rapidetr.model.outputs import FactoredMasks, LayerOutput, Output
from rapidetr.model.projector import Projector
from rapidetr.model.proposals import ProposalHeads, Proposals
from rapidetr.model.segmentation import MaskHead
from rapidetr.model.vit import Vit


class RfDetr(nn.Module):
    """See the diagram above; `config` says every width and depth."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.width
        self.config = config
        self.vit = Vit(config)
        self.projector = Projector(config)
        self.proposals = ProposalHeads(config)
        self.query_content = nn.Parameter(torch.zeros(config.groups * config.queries, d))
        self.query_boxes = nn.Parameter(torch.zeros(config.groups * config.queries, 4))
        self.decoder = Decoder(config)
        self.class_head = nn.Linear(d, config.class_rows)
        self.box_head = Mlp(d, d, d, 4)
        self.mask_head = MaskHead(config) if config.segmentation else None

    def forward(
        self,
        images_BCHW: Tensor,
        groups: int = 1,
        *,
        every_layer: bool = False,
        decoder_layers: int | None = None,
        queries: int | None = None,
    ) -> Output:
        """Normalised images, height and width multiples of `config.divisor`, to the answers of the last layer.

        `groups` query groups (training: all), `every_layer` for the losses; `decoder_layers` and `queries` cut the decoder
        short (first rows of the first group).
        """
        layers, Q = self._extent(groups, decoder_layers, queries)
        levels = self.projector(self.vit(images_BCHW))
        shapes = [(level.shape[-2], level.shape[-1]) for level in levels]
        flat = [level.flatten(2).transpose(1, 2) for level in levels]
        memory_BSd = flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)
        proposals = self.proposals(memory_BSd, shapes, Q, groups)
        references = self._references(proposals.boxes.detach(), groups * Q)
        decoded = self._decode(memory_BSd, shapes, references, groups, layers, every_layer)
        if every_layer:
            return self._all_answers(decoded, proposals, levels[0], (images_BCHW.shape[-2], images_BCHW.shape[-1]))
        hs_BQd, reference_BQ4 = decoded[-1]
        masks = None
        if self.mask_head is not None:
            pixels = self.mask_head.resize(levels[0], (images_BCHW.shape[-2], images_BCHW.shape[-1]))
            for block in self.mask_head.blocks[:layers]:
                pixels = block(pixels)
            masks = self.mask_head.factor(pixels, hs_BQd).dense()
        return Output(self.class_head(hs_BQd), self._boxes(reference_BQ4, hs_BQd), masks)

    def _extent(self, groups: int, decoder_layers: int | None, queries: int | None) -> tuple[int, int]:
        limits = {"groups": self.config.groups, "decoder_layers": self.config.decoder_layers, "queries": self.config.queries}
        asked = {"groups": groups, "decoder_layers": decoder_layers, "queries": queries}
        for name, value in asked.items():
            if value is not None and not 1 <= value <= limits[name]:
                raise ConfigError(f"{name} is {value}; this network has 1 to {limits[name]}")
        if groups > 1 and queries is not None and queries != self.config.queries:
            raise ConfigError(f"queries is {queries} with {groups} groups; fewer queries are for inference, with one group")
        return decoder_layers or self.config.decoder_layers, queries or self.config.queries

    def _references(self, boxes_BK4: Tensor, count: int) -> Tensor:
        """Starting boxes [B, count, 4]: proposals refined by the learned rows; where there are too few, the rows alone.

        Groups are concatenated before, so with fewer tokens than queries the rows shift across groups in training; the
        published networks were trained like that.
        """
        rows_Q4 = exact(self.query_boxes[:count])
        K = boxes_BK4.shape[1]
        refined = refine(boxes_BK4, rows_Q4[:K], self.config.box_reparam)
        if count == K:
            return refined
        return torch.cat([refined, rows_Q4[K:].expand(len(boxes_BK4), -1, -1)], dim=1)

    def _decode(
        self, memory_BSd: Tensor, shapes: list[tuple[int, int]], reference_BQ4: Tensor, groups: int, layers: int, every_layer: bool
    ) -> list[tuple[Tensor, Tensor]]:
        """(normed output, reference) of every layer, or of the last alone."""
        as_box = (lambda r: r) if self.config.box_reparam else torch.sigmoid
        x_BQd = self.query_content[: reference_BQ4.shape[1]].expand(len(memory_BSd), -1, -1)
        fixed = reference_BQ4
        boxes = as_box(fixed)
        position = self.decoder.embed(boxes)
        decoded = []
        for i, layer in enumerate(self.decoder.layers[:layers]):
            x_BQd = layer(x_BQd, position, boxes, memory_BSd, shapes, groups)
            last = i + 1 == layers
            if every_layer or last:
                decoded.append((self.decoder.norm(x_BQd), reference_BQ4))
            if not self.config.lite_refine and not last:
                reference_BQ4 = refine(fixed, self.box_head(x_BQd), self.config.box_reparam)  # of the output before its norm
                fixed = reference_BQ4.detach()
                boxes = as_box(fixed)
                position = self.decoder.embed(boxes)
        return decoded

    def _boxes(self, reference_BQ4: Tensor, hs_BQd: Tensor) -> Tensor:
        boxes = refine(reference_BQ4, self.box_head(hs_BQd), self.config.box_reparam)
        return boxes if self.config.box_reparam else boxes.sigmoid()

    def _all_answers(
        self, decoded: list[tuple[Tensor, Tensor]], proposals: Proposals, level_BdHW: Tensor, image_hw: tuple[int, int]
    ) -> Output:
        """Answers of every decoder layer and of the proposals, masks factored."""
        proposal_boxes = proposals.boxes if self.config.box_reparam else proposals.boxes.sigmoid()
        masks: list[FactoredMasks | None] = [None] * (len(decoded) + 1)
        if self.mask_head is not None:
            pixels = self.mask_head.resize(level_BdHW, image_hw)
            masks[-1] = self.mask_head.factor(pixels, proposals.content)
            for i, (block, (hs_BQd, _)) in enumerate(zip(self.mask_head.blocks, decoded, strict=False)):
                pixels = block(pixels)
                masks[i] = self.mask_head.factor(pixels, hs_BQd)
        layers = tuple(LayerOutput(self.class_head(hs), self._boxes(ref, hs), m) for (hs, ref), m in zip(decoded, masks[:-1], strict=True))
        first = LayerOutput(proposals.logits, proposal_boxes, masks[-1])
        return Output(layers[-1].logits, layers[-1].boxes, None, layers, first)
