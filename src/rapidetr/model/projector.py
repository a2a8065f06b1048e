"""From the encoder's feature maps to the levels that the decoder looks at."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rapidetr.core.config import LEVEL_SCALES, ModelConfig


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of an NCHW map, pixel by pixel."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return super().forward(x_BCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvUnit(nn.Module):
    """Convolution without bias, channel norm, activation."""

    def __init__(self, c_in: int, c_out: int, kernel: int, eps: float, *, stride: int = 1, relu: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.norm = ChannelNorm(c_out, eps=eps)
        self.relu = relu

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y = self.norm(self.conv(x_BCHW))
        return F.relu(y) if self.relu else F.silu(y)


class C2f(nn.Module):
    """Split in halves, run one half through a chain of bottlenecks (no residual), fuse every link of the chain."""

    def __init__(self, c_in: int, c_out: int, eps: float, links: int = 3) -> None:
        super().__init__()
        half = c_out // 2
        self.enter = ConvUnit(c_in, c_out, 1, eps)
        self.chain = nn.ModuleList(nn.Sequential(ConvUnit(half, half, 3, eps), ConvUnit(half, half, 3, eps)) for _ in range(links))
        self.leave = ConvUnit((2 + links) * half, c_out, 1, eps)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        links = list(self.enter(x_BCHW).chunk(2, dim=1))
        for bottleneck in self.chain:
            links.append(bottleneck(links[-1]))
        return self.leave(torch.cat(links, dim=1))


class Level(nn.Module):
    """One level: bring every feature map to the level's scale, concatenate, C2f, norm."""

    def __init__(self, config: ModelConfig, scale: float) -> None:
        super().__init__()
        D, n, eps = config.vit_width, len(config.stages), config.projector_eps
        self.resample = nn.ModuleList()
        if scale == 2.0:
            self.resample.extend(nn.ConvTranspose2d(D, D // 2, 2, stride=2) for _ in range(n))
        elif scale == 0.5:
            self.resample.extend(ConvUnit(D, D, 3, eps, stride=2, relu=True) for _ in range(n))
        self.fuse = C2f(n * (D // 2 if scale == 2.0 else D), config.width, eps)
        self.norm = ChannelNorm(config.width, eps=1e-6)

    def forward(self, features: list[Tensor]) -> Tensor:
        if self.resample:
            features = [resample(f) for resample, f in zip(self.resample, features, strict=True)]
        return self.norm(self.fuse(torch.cat(features, dim=1)))


class Projector(nn.Module):
    """Feature maps [B, D, h, w] -> list of levels [B, d, h_l, w_l] in configuration order."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.coarsest = "P6" in config.levels  # every second pixel of the level before, no parameters
        self.levels = nn.ModuleList(Level(config, LEVEL_SCALES[name]) for name in config.levels if name != "P6")

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        levels = [level(features) for level in self.levels]
        if self.coarsest:
            levels.append(levels[-1][:, :, ::2, ::2])
        return levels
