"""The decoder: queries talk to each other, then look at the picture around their boxes."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from rapidetr.core.config import ModelConfig
from rapidetr.model.attention import attend
from rapidetr.model.boxes import Mlp, embed_boxes
from rapidetr.model.deformable import DeformableAttention
from rapidetr.model.mlp import relu_mlp


class SelfAttention(nn.Module):
    """Queries of one group attend to each other; q and k carry the position, v does not."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, content_BQd: Tensor, position_BQd: Tensor, groups: int) -> Tensor:
        B, Q, d = content_BQd.shape
        weight, bias = self.qkv.weight, self.qkv.bias
        qk = F.linear(content_BQd + position_BQd, weight[: 2 * d], bias[: 2 * d])
        v = F.linear(content_BQd, weight[2 * d :], bias[2 * d :])
        q, k = qk.view(B * groups, Q // groups, 2, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        v = v.view(B * groups, Q // groups, self.heads, d // self.heads).transpose(1, 2)
        mixed = attend(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(B, Q, d))


class DecoderLayer(nn.Module):
    """Self-attention, deformable cross-attention, feed-forward; each followed by its norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.width
        self.self_attention = SelfAttention(d, config.self_heads)
        self.norm1 = nn.LayerNorm(d)
        self.cross_attention = DeformableAttention(config)
        self.norm2 = nn.LayerNorm(d)
        self.up = nn.Linear(d, config.decoder_ffn)
        self.down = nn.Linear(config.decoder_ffn, d)
        self.norm3 = nn.LayerNorm(d)

    def forward(
        self, x_BQd: Tensor, position_BQd: Tensor, boxes_BQ4: Tensor, memory_BSd: Tensor, shapes: list[tuple[int, int]], groups: int
    ) -> Tensor:
        x_BQd = self.norm1(x_BQd + self.self_attention(x_BQd, position_BQd, groups))
        x_BQd = self.norm2(x_BQd + self.cross_attention(x_BQd + position_BQd, boxes_BQ4, memory_BSd, shapes))
        return self.norm3(x_BQd + relu_mlp(self.up, self.down, x_BQd))


class Decoder(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.width = config.width
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(config.width)
        self.position = Mlp(2 * config.width, config.width, config.width)

    def embed(self, boxes_BQ4: Tensor) -> Tensor:
        """Query positions [B, Q, d] from boxes."""
        waves = embed_boxes(boxes_BQ4, self.width)
        return self.position(waves.to(self.norm.weight.dtype))
