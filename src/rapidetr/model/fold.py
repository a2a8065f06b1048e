"""The deployment graph: the network for one size and one query group, everything constant computed once, in fp64.

Multiplied out, all exactly equal in real numbers: mean, std and 1/255 into the patch embedding (uint8 input); the affine
part of a layer norm into the linear layer after it; LayerScale into the product before it; the attention scale into q; the
sine embedding's interleaving into the product after it; the mask head's pixel product into its query product. Computed
once: the resized position embedding with the class token and registers, in window order; anchors; sine frequencies. In one
product each: q, k and v; offsets and weights; the values of all decoder layers. At one feature level the projector's first
product also runs in window order, so that one thin map is reshuffled instead of four wide ones.

Not folded, because several readers share what the norm gives and the affine part is then free within the kernel: the norms
of decoder layers, of the memory, and of the decoder's output; the encoder's norm where strided convolutions pad it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rapidetr.core.config import ModelConfig
from rapidetr.core.preprocessing import Preprocessing
from rapidetr.model.boxes import exact, refine
from rapidetr.model.decoder import DecoderLayer
from rapidetr.model.deformable import sample
from rapidetr.model.products import after_norm, on_affine, on_bytes, on_waves, plain, product, query_scaled, scaled, stacked
from rapidetr.model.proposals import GroupHead, anchor_boxes
from rapidetr.model.rfdetr import RfDetr
from rapidetr.model.vit import Block, Vit
from rapidetr.model.windows import merge, split


class Folded(nn.Module):
    """images -> (boxes [B, Q, 4] as centre and size in units of the picture, logits [B, Q, C][, masks [B, Q, h, w]]).

    images: float32 [B, C, H, W], normalised; with `preprocessing` uint8 [B, H, W, C]. Geometry stays fp32 in every
    precision. The network is copied, never changed; ConfigError for a size, layers or queries that it does not have.
    """

    geometry = ("anchors", "rows", "frequency")
    anchors: Tensor
    rows: Tensor
    frequency: Tensor
    content: Tensor
    valid: Tensor | None

    def __init__(
        self,
        network: RfDetr,
        *,
        size_hw: tuple[int, int] | None = None,
        decoder_layers: int | None = None,
        queries: int | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        super().__init__()
        layers, self.queries = network._extent(1, decoder_layers, queries)
        self.config = network.config.at(size_hw=size_hw)
        parts: Any = deepcopy(network).to("cpu", torch.float64).eval().requires_grad_(False)
        config, p = self.config, self.config.patch_size
        grid_hw = (config.size_hw[0] // p, config.size_hw[1] // p)
        self.takes_bytes = preprocessing is not None
        self.encoder = Encoder(parts.vit, grid_hw, preprocessing)
        self.levels = _levels(parts, grid_hw)
        self.coarsest = parts.projector.coarsest
        self.shapes = self._level_shapes(grid_hw)
        self.proposals = Proposer(parts.proposals.groups[0])
        self.values = stacked([layer.cross_attention.values for layer in parts.decoder.layers[:layers]])
        self.layers = nn.ModuleList(FoldedDecoderLayer(layer, config) for layer in parts.decoder.layers[:layers])
        self.norm, self.position = parts.decoder.norm, on_waves(parts.decoder.position, config.width)
        self.class_head, self.box_head = parts.class_head, parts.box_head
        self.mask_head = FoldedMasks(parts.mask_head, config, layers) if config.segmentation else None
        self.register_buffer("content", parts.query_content[: self.queries].clone())
        self._add_geometry(parts.query_boxes)
        self.float()

    def _level_shapes(self, grid_hw: tuple[int, int]) -> list[tuple[int, int]]:
        scales = {"P3": lambda n: 2 * n, "P4": lambda n: n, "P5": lambda n: (n + 1) // 2}
        shapes: list[tuple[int, int]] = []
        for level in self.config.levels:
            h, w = grid_hw if level != "P6" else shapes[-1]
            scale = scales[level] if level != "P6" else scales["P5"]
            shapes.append((scale(h), scale(w)))
        return shapes

    def _add_geometry(self, query_boxes: Tensor) -> None:
        anchors, valid_S = anchor_boxes(self.shapes, torch.device("cpu"))
        self.register_buffer("valid", None if bool(valid_S.all()) else valid_S[:, None].float())
        if self.config.box_reparam:
            anchors = anchors * valid_S[:, None]
        else:
            anchors = (anchors / (1 - anchors)).log().masked_fill(~valid_S[:, None], torch.inf)
        self.register_buffer("anchors", anchors)
        self.register_buffer("rows", query_boxes[: self.queries].clone())
        n = self.config.width // 2  # embed_boxes has the formula; sin and cos of a pair share their frequency
        self.register_buffer("frequency", 2 * math.pi / 10000 ** (2 * torch.arange(n // 2, dtype=torch.float64) / n))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Moves everything; what is geometry keeps its fp32 whatever the weights become."""
        kept = {name: getattr(self, name) for name in self.geometry if name in self._buffers}
        super()._apply(fn, recurse)
        for name, value in kept.items():
            setattr(self, name, value.float().to(getattr(self, name).device))
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = self.encoder(images.permute(0, 3, 1, 2) if self.takes_bytes else images)
        levels = [level(features) for level in self.levels]
        if self.coarsest:
            levels.append(levels[-1][:, :, ::2, ::2])
        flat = [level.flatten(2).transpose(1, 2) for level in levels]
        memory_BSd = flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)
        reference_BQ4 = self._start(memory_BSd)
        content_BQd, reference_BQ4 = self._decode(memory_BSd, reference_BQ4)
        boxes = self._as_boxes(refine(reference_BQ4, self.box_head(content_BQd), self.config.box_reparam))
        answer = boxes, self.class_head(content_BQd).float()
        return answer if self.mask_head is None else (*answer, self.mask_head(levels[0], content_BQd).float())

    def _start(self, memory_BSd: Tensor) -> Tensor:
        """Starting boxes [B, Q, 4]: the best tokens' proposals, refined by the learned rows; where tokens are too few, the rows."""
        K = min(self.queries, self.anchors.shape[0])
        seen = memory_BSd if self.valid is None else memory_BSd * self.valid
        index_BK, delta_BK4 = self.proposals(seen, K)
        proposed = refine(F.embedding(index_BK, self.anchors), delta_BK4, self.config.box_reparam)
        refined = refine(proposed, self.rows[:K], self.config.box_reparam)
        if self.queries == K:
            return refined
        return torch.cat([refined, self.rows[K:].expand(refined.shape[0], -1, -1)], dim=1)

    def _decode(self, memory_BSd: Tensor, reference_BQ4: Tensor) -> tuple[Tensor, Tensor]:
        """(normed output, reference) of the last layer."""
        B, heads, L = memory_BSd.shape[0], self.config.cross_heads, len(self.layers)
        values = self.values(memory_BSd).view(B, -1, L, heads, self.config.width // heads).permute(2, 0, 3, 4, 1).unbind(0)
        x_BQd = self.content.expand(B, -1, -1)
        boxes = self._as_boxes(reference_BQ4)
        position = self._embed(boxes)
        for i, layer in enumerate(self.layers):
            x_BQd = layer(x_BQd, position, boxes, values[i], self.shapes)
            if not self.config.lite_refine and i + 1 < L:
                reference_BQ4 = refine(reference_BQ4, self.box_head(x_BQd), self.config.box_reparam)
                boxes = self._as_boxes(reference_BQ4)
                position = self._embed(boxes)
        return self.norm(x_BQd), reference_BQ4

    def _as_boxes(self, reference_BQ4: Tensor) -> Tensor:
        return reference_BQ4 if self.config.box_reparam else reference_BQ4.sigmoid()

    def _embed(self, boxes_BQ4: Tensor) -> Tensor:
        angle = (boxes_BQ4[..., None] * self.frequency).flatten(-2)
        return self.position(torch.cat([angle.sin(), angle.cos()], dim=-1).to(self.norm.weight.dtype))


def best_pairs(boxes_BQ4: Tensor, logits_BQC: Tensor, masks_BQhw: Tensor | None = None) -> tuple[Tensor, ...]:
    """(boxes [B, Q, 4], scores [B, Q], labels [B, Q], queries [B, Q][, mask logits [B, Q, h, w]]) of the best Q pairs, best first.

    Of all pairs of query and row of the class head, rows without a class among them, as pixels/select.py takes them before
    any threshold. Boxes are left, top, right, bottom in units of the picture, clamped to it; labels are rows of the head.
    """
    Q, C = logits_BQC.shape[1:]
    scores, flat = logits_BQC.sigmoid().flatten(1).topk(Q, dim=1)
    queries = torch.div(flat, C, rounding_mode="floor")
    half = boxes_BQ4[..., 2:].clamp(min=0) * 0.5
    corners = torch.cat([boxes_BQ4[..., :2] - half, boxes_BQ4[..., :2] + half], dim=-1).clamp(0, 1)
    answer = _rows(corners, queries), scores, flat - queries * C, queries
    if masks_BQhw is None:
        return answer
    return (*answer, masks_BQhw.gather(1, queries[..., None, None].expand(-1, -1, *masks_BQhw.shape[2:])))


class Encoder(nn.Module):
    """The ViT before its last norm: tokens of each taken stage, [B * windows^2, n, D] in window order."""

    front: Tensor
    positions: Tensor

    def __init__(self, vit: Vit, grid_hw: tuple[int, int], preprocessing: Preprocessing | None) -> None:
        super().__init__()
        self.windows, self.stages, self.global_blocks = vit.windows, vit.stages, vit.global_blocks
        self.patch = vit.patch if preprocessing is None else on_bytes(vit.patch, preprocessing)
        cls_position, grid_1hwD = vit.positions_at(grid_hw)
        front = [vit.cls_token + cls_position, *([] if vit.registers is None else [vit.registers])]
        self.register_buffer("front", torch.cat(front, dim=1))
        self.extra = self.front.shape[1]
        self.register_buffer("positions", split(grid_1hwD, self.windows))
        self.blocks = nn.ModuleList(FoldedBlock(cast(Block, block)) for block in vit.blocks[: vit.stages[-1]])

    def forward(self, images_BCHW: Tensor) -> list[Tensor]:
        patches = self.patch(images_BCHW.to(self.patch.weight.dtype)).permute(0, 2, 3, 1)
        W, n, D = self.positions.shape
        tokens_BWnD = split(patches, self.windows).view(-1, W, n, D) + self.positions
        front_BWeD = self.front.expand(tokens_BWnD.shape[0], W, -1, -1)
        x_BND = torch.cat([front_BWeD, tokens_BWnD], dim=2).flatten(0, 1)
        features = []
        for i, block in enumerate(self.blocks):
            if i in self.global_blocks:
                x_BND = block(x_BND.view(-1, W * (self.extra + n), D)).view(-1, self.extra + n, D)
            else:
                x_BND = block(x_BND)
            if i + 1 in self.stages:
                features.append(x_BND[:, self.extra :])
        return features


class FoldedBlock(nn.Module):
    def __init__(self, block: Block) -> None:
        super().__init__()
        self.heads = block.attention.heads
        self.norm = plain(block.norm1)
        self.qkv = query_scaled(after_norm(block.norm1, block.attention.qkv), block.scale1.numel(), self.heads)
        self.out = scaled(block.attention.out, block.scale1)
        self.up = after_norm(block.norm2, block.up)
        self.down = scaled(block.down, block.scale2)

    def forward(self, x_BND: Tensor) -> Tensor:
        _, N, D = x_BND.shape
        q, k, v = self.qkv(self.norm(x_BND)).view(-1, N, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        mixed_BMNd = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        x_BND = x_BND + self.out(mixed_BMNd.transpose(1, 2).reshape(-1, N, D))
        return x_BND + self.down(F.gelu(self.up(self.norm(x_BND))))


class TokenLevel(nn.Module):
    """A level at the encoder's own scale: encoder norm folded into the first product, which runs on tokens in window order."""

    def __init__(self, level: Any, norm: nn.LayerNorm, count: int, windows: int, grid_hw: tuple[int, int]) -> None:
        super().__init__()
        self.windows, self.grid_hw = windows, grid_hw
        self.norm, enter = plain(norm), level.fuse.enter
        weight = enter.conv.weight[:, :, 0, 0]
        self.enter = on_affine(product(weight, torch.zeros_like(weight[:, 0])), norm.weight.repeat(count), norm.bias.repeat(count))
        self.enter_norm = nn.LayerNorm(enter.norm.normalized_shape, enter.norm.eps, dtype=torch.float64)
        self.enter_norm.load_state_dict(enter.norm.state_dict())
        self.fuse, self.last_norm = deepcopy(level.fuse), level.norm
        self.fuse.enter = nn.Identity()

    def forward(self, features: list[Tensor]) -> Tensor:
        tokens = torch.cat([self.norm(f) for f in features], dim=-1)
        entered = F.silu(self.enter_norm(self.enter(tokens)))
        return self.last_norm(self.fuse(merge(entered, self.windows, self.grid_hw).permute(0, 3, 1, 2)))


class MapLevel(nn.Module):
    """A level that is resampled, as it is in the network."""

    def __init__(self, level: Any, norm: nn.LayerNorm, windows: int, grid_hw: tuple[int, int]) -> None:
        super().__init__()
        self.level, self.norm, self.windows, self.grid_hw = level, norm, windows, grid_hw

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.level([merge(self.norm(f), self.windows, self.grid_hw).permute(0, 3, 1, 2) for f in features])


class Proposer(nn.Module):
    """Memory [B, S, d] -> (index of the best K tokens [B, K], best first; what the box head says of them [B, K, 4])."""

    def __init__(self, head: GroupHead) -> None:
        super().__init__()
        self.linear, self.norm, self.boxes = head.linear, plain(head.norm), deepcopy(head.boxes)
        self.classes = after_norm(head.norm, head.classes)
        self.boxes.layers[0] = after_norm(head.norm, cast(nn.Linear, head.boxes.layers[0]))

    def forward(self, memory_BSd: Tensor, count: int) -> tuple[Tensor, Tensor]:
        encoded_BSd = self.norm(self.linear(memory_BSd))
        index_BK = self.classes(encoded_BSd).amax(-1).topk(count, dim=1).indices
        return index_BK, self.boxes(_rows(encoded_BSd, index_BK))


class FoldedDecoderLayer(nn.Module):
    def __init__(self, layer: DecoderLayer, config: ModelConfig) -> None:
        super().__init__()
        attention, cross, d = layer.self_attention, layer.cross_attention, config.width
        self.heads, self.cross_heads, self.levels, self.points = attention.heads, cross.heads, cross.levels, cross.points
        self.qk = query_scaled(product(attention.qkv.weight[: 2 * d], attention.qkv.bias[: 2 * d]), d, self.heads)
        self.v = product(attention.qkv.weight[2 * d :], attention.qkv.bias[2 * d :])
        self.out, self.cross_out = attention.out, cross.out
        offsets = scaled(cross.offsets, torch.full_like(cross.offsets.bias, 0.5 / self.points))
        self.where_and_weights = stacked([offsets, cross.weights])
        self.norm1, self.norm2, self.norm3, self.up, self.down = layer.norm1, layer.norm2, layer.norm3, layer.up, layer.down

    def forward(self, x_BQd: Tensor, position_BQd: Tensor, boxes_BQ4: Tensor, values_BMdS: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
        x_BQd = self.norm1(x_BQd + self._talk(x_BQd, position_BQd))
        x_BQd = self.norm2(x_BQd + self._look(x_BQd + position_BQd, boxes_BQ4, values_BMdS, shapes))
        return self.norm3(x_BQd + self.down(F.relu(self.up(x_BQd))))

    def _talk(self, x_BQd: Tensor, position_BQd: Tensor) -> Tensor:
        _, Q, d = x_BQd.shape
        q, k = self.qk(x_BQd + position_BQd).view(-1, Q, 2, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        v = self.v(x_BQd).view(-1, Q, self.heads, d // self.heads).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        return self.out(mixed.transpose(1, 2).reshape(-1, Q, d))

    def _look(self, query_BQd: Tensor, boxes_BQ4: Tensor, values_BMdS: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
        Q, M, L, P = query_BQd.shape[1], self.cross_heads, self.levels, self.points
        said = exact(self.where_and_weights(query_BQd))
        offsets = said[..., : 2 * M * L * P].view(-1, Q, M, L, P, 2)
        weights = said[..., 2 * M * L * P :].view(-1, Q, M, L * P).softmax(-1)
        box = boxes_BQ4[:, :, None, None, None]
        sampled = sample(values_BMdS, box[..., :2] + offsets * box[..., 2:], shapes)
        mixed = (sampled * weights.permute(0, 2, 3, 1).unsqueeze(2)).sum(3)
        return self.cross_out(mixed.flatten(1, 2).transpose(1, 2).to(query_BQd.dtype))


class FoldedMasks(nn.Module):
    """First level and decoder output -> mask logits [B, Q, h, w]; the product over pixel features is done on the queries instead."""

    def __init__(self, head: Any, config: ModelConfig, layers: int) -> None:
        super().__init__()
        self.size = (config.size_hw[0] // config.mask_stride, config.size_hw[1] // config.mask_stride)
        self.blocks: Any = head.blocks[:layers]
        for block in self.blocks:
            block.pointwise, block.norm = after_norm(block.norm, block.pointwise), plain(block.norm)
        self.norm, self.up, self.down = plain(head.query_norm), after_norm(head.query_norm, head.query_up), head.query_down
        # queries . (P pixels + b) + c = (P^T queries) . pixels + (b . queries + c): one row more in the query product
        turn = torch.cat([head.pixels.weight[:, :, 0, 0], head.pixels.bias[:, None]], dim=1).T
        last = torch.cat([torch.zeros(config.width, dtype=torch.float64), head.bias])
        self.queries = product(turn @ head.queries.weight, turn @ head.queries.bias + last)

    def forward(self, level_BdHW: Tensor, content_BQd: Tensor) -> Tensor:
        pixels = F.interpolate(level_BdHW, size=self.size, mode="bilinear", align_corners=False)
        for block in self.blocks:
            pixels = block(pixels)
        factors = self.queries(content_BQd + self.down(F.gelu(self.up(self.norm(content_BQd)))))
        return (factors[..., :-1] @ pixels.flatten(2) + factors[..., -1:]).unflatten(-1, self.size)


def _levels(parts: Any, grid_hw: tuple[int, int]) -> nn.ModuleList:
    vit, levels = parts.vit, parts.projector.levels
    if any(len(level.resample) for level in levels):
        return nn.ModuleList(MapLevel(level, vit.norm, vit.windows, grid_hw) for level in levels)
    return nn.ModuleList(TokenLevel(level, vit.norm, len(vit.stages), vit.windows, grid_hw) for level in levels)


def _rows(x_BSd: Tensor, index_BK: Tensor) -> Tensor:
    return x_BSd.gather(1, index_BK[..., None].expand(-1, -1, x_BSd.shape[-1]))
