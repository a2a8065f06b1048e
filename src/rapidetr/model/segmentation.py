"""The mask head: pixel features, refined a little for each decoder layer, times query features."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rapidetr.core.config import ModelConfig
from rapidetr.model.mlp import gelu, gelu_mlp
from rapidetr.model.outputs import FactoredMasks


class PixelBlock(nn.Module):
    """Residual depth-wise 3x3 convolution, norm, linear layer, GELU (ConvNeXt, Liu et al., 2022, without the scale)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pointwise = nn.Linear(width, width)

    def forward(self, x_BdHW: Tensor) -> Tensor:
        y = self.depthwise(x_BdHW).permute(0, 2, 3, 1)
        return x_BdHW + gelu(self.pointwise(self.norm(y))).permute(0, 3, 1, 2)


class MaskHead(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.width
        self.stride = config.mask_stride
        self.blocks = nn.ModuleList(PixelBlock(d) for _ in range(config.decoder_layers))
        self.pixels = nn.Conv2d(d, d, 1)
        self.query_norm = nn.LayerNorm(d)
        self.query_up = nn.Linear(d, 4 * d)
        self.query_down = nn.Linear(4 * d, d)
        self.queries = nn.Linear(d, d)
        self.bias = nn.Parameter(torch.zeros(1))

    def resize(self, level_BdHW: Tensor, image_hw: tuple[int, int]) -> Tensor:
        """The first level at 1/stride of the picture."""
        size = (image_hw[0] // self.stride, image_hw[1] // self.stride)
        return F.interpolate(level_BdHW, size=size, mode="bilinear", align_corners=False)

    def factor(self, pixels_BdHW: Tensor, content_BQd: Tensor) -> FactoredMasks:
        """Both factors of the mask logits, from refined pixels and from decoder outputs or encoder features."""
        inner = gelu_mlp(self.query_up, self.query_down, self.query_norm(content_BQd))
        return FactoredMasks(self.pixels(pixels_BdHW), self.queries(content_BQd + inner), self.bias)
