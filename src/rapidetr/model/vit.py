"""The windowed DINOv2 encoder: patches to four feature maps.

Tokens stay in window order from the patch embedding to the last block. A windowed block sees [B * windows^2, T, D], a
global block the same memory as [B, windows^2 * T, D]; nothing is reshuffled in between. Every window carries its own copy
of the class token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from rapidetr.core.config import ModelConfig, check_size
from rapidetr.model.attention import attend
from rapidetr.model.mlp import gelu_mlp
from rapidetr.model.windows import merge, split


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        B, N, D = x_BND.shape
        q, k, v = self.qkv(x_BND).view(B, N, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        mixed_BMND = attend(q, k, v)
        return self.out(mixed_BMND.transpose(1, 2).reshape(B, N, D))


class Block(nn.Module):
    """Pre-norm attention and MLP, each scaled per channel (LayerScale)."""

    def __init__(self, width: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width, heads)
        self.scale1 = nn.Parameter(torch.ones(width))
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.up = nn.Linear(width, mlp)
        self.down = nn.Linear(mlp, width)
        self.scale2 = nn.Parameter(torch.ones(width))

    def forward(self, x_BND: Tensor, branches_2B11: Tensor | None = None) -> Tensor:
        """`branches_2B11`: what attention and MLP are multiplied with in each row, for drop path."""
        scale1: Tensor = self.scale1
        scale2: Tensor = self.scale2
        if branches_2B11 is not None:
            scale1, scale2 = scale1 * branches_2B11[0], scale2 * branches_2B11[1]
        x_BND = torch.addcmul(x_BND, self.attention(self.norm1(x_BND)), scale1)
        return torch.addcmul(x_BND, gelu_mlp(self.up, self.down, self.norm2(x_BND)), scale2)


class Vit(nn.Module):
    """images [B, C, H, W] -> one feature map [B, D, h, w] for each taken stage, channels last in memory."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D, p = config.vit_width, config.patch_size
        self.patch_size, self.windows = p, config.windows
        self.stages, self.global_blocks = config.stages, frozenset(config.global_blocks)
        self.position_grid = config.position_grid
        self.checkpointing = False  # recompute blocks in the backward pass: less memory, more time
        self.drop_path = 0.0  # how often the last block is skipped in training; earlier ones linearly less
        self.patch = nn.Conv2d(config.in_channels, D, p, stride=p)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, D))
        # part of every official file, used by nothing
        self.mask_token = nn.Parameter(torch.zeros(1, D), requires_grad=False)
        self.positions = nn.Parameter(torch.zeros(1, 1 + config.position_grid**2, D))
        self.registers = nn.Parameter(torch.zeros(1, config.registers, D)) if config.registers else None
        self.blocks = nn.ModuleList(Block(D, config.vit_heads, config.vit_mlp) for _ in range(config.vit_depth))
        self.norm = nn.LayerNorm(D, eps=1e-6)

    def forward(self, images_BCHW: Tensor) -> list[Tensor]:
        H, W = images_BCHW.shape[-2:]
        check_size((H, W), self.patch_size, self.windows)
        grid_hw = (H // self.patch_size, W // self.patch_size)
        x_BND = self._embed(images_BCHW, grid_hw)
        B, extra = images_BCHW.shape[0], x_BND.shape[1] - grid_hw[0] * grid_hw[1] // self.windows**2
        features = []
        for i, block in enumerate(self.blocks[: self.stages[-1]]):
            shape = x_BND.shape
            x_BND = x_BND.view(B, -1, shape[-1]) if i in self.global_blocks else x_BND
            branches = self._draw_branches(i, B, x_BND) if self.training and self.drop_path else None
            if self.checkpointing and torch.is_grad_enabled():
                x_BND = checkpoint(block, x_BND, branches, use_reentrant=False)
            else:
                x_BND = block(x_BND, branches)
            x_BND = x_BND.view(shape)
            if i + 1 in self.stages:
                tokens = self.norm(x_BND[:, extra:])
                features.append(merge(tokens, self.windows, grid_hw).permute(0, 3, 1, 2))
        return features

    def _draw_branches(self, block: int, pictures: int, x_BND: Tensor) -> Tensor:
        """Stochastic depth (Huang et al., ECCV 2016): 0 for pictures that skip a branch, 1 / (1 - rate) for the others, [2, B, 1, 1].

        All windows of a picture share its draw.
        """
        rate = self.drop_path * block / max(1, len(self.blocks) - 1)
        kept = torch.rand(2, pictures, 1, 1, device=x_BND.device) >= rate
        return (kept / (1 - rate)).repeat_interleave(len(x_BND) // pictures, dim=1)

    def _embed(self, images_BCHW: Tensor, grid_hw: tuple[int, int]) -> Tensor:
        """Patches with positions, cut into windows, class token (and registers) in front of each."""
        cls_position, grid_1hwD = self.positions_at(grid_hw)
        patches_BhwD = self.patch(images_BCHW).permute(0, 2, 3, 1) + grid_1hwD
        tokens_BND = split(patches_BhwD, self.windows)
        front = [(self.cls_token + cls_position).expand(len(tokens_BND), -1, -1)]
        if self.registers is not None:
            front.append(self.registers.expand(len(tokens_BND), -1, -1))
        return torch.cat([*front, tokens_BND], dim=1)

    def positions_at(self, grid_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Position of the class token [1, 1, D] and of the grid [1, h, w, D], resized bicubically if the grid differs."""
        P = self.position_grid
        grid_1PPD = self.positions[:, 1:].view(1, P, P, -1)
        if grid_hw != (P, P):
            resized = resize_positions(grid_1PPD.permute(0, 3, 1, 2), grid_hw)
            grid_1PPD = resized.permute(0, 2, 3, 1).to(self.positions.dtype)
        return self.positions[:, :1], grid_1PPD


def resize_positions(grid_1DPP: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """Bicubic with antialiasing, in fp32 whatever the network runs in, as the official encoder does at every forward."""
    return F.interpolate(grid_1DPP.float(), size=grid_hw, mode="bicubic", antialias=True, align_corners=False)
