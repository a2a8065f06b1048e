"""How much a configuration computes: multiplications of one picture, from its numbers alone, whatever engine runs it."""

from __future__ import annotations

import math

from rapidetr.core.config import LEVEL_SCALES, ModelConfig


def gigamacs(config: ModelConfig, size_hw: tuple[int, int], decoder_layers: int, queries: int) -> float:
    """10^9 multiply-adds of all matrix products and convolutions for one picture (a test counts them in the network).

    Point-wise work, resizing and the sampling of deformable attention are left out: under 1 % of the whole.
    """
    grid_hw = (size_hw[0] // config.patch_size, size_hw[1] // config.patch_size)
    levels = _levels(config, grid_hw)
    tokens = sum(h * w for _, (h, w) in levels)
    count = _encoder(config, grid_hw[0] * grid_hw[1])
    count += sum(_level(config, scale, h * w) for scale, (h, w) in levels if scale != LEVEL_SCALES["P6"])
    count += _decoder(config, tokens, decoder_layers, queries)
    if config.segmentation:
        count += _masks(config, size_hw, decoder_layers, queries)
    return count / 1e9


def _levels(config: ModelConfig, grid_hw: tuple[int, int]) -> list[tuple[float, tuple[int, int]]]:
    """(scale, (height, width)) of every level of the pyramid; P6 halves the level before it."""
    found: list[tuple[float, tuple[int, int]]] = []
    for name in config.levels:
        base, scale = (found[-1][1], 0.5) if name == "P6" else (grid_hw, LEVEL_SCALES[name])
        found.append((LEVEL_SCALES[name], (math.ceil(base[0] * scale), math.ceil(base[1] * scale))))
    return found


def _encoder(c: ModelConfig, patches: int) -> int:
    D, parts = c.vit_width, c.windows**2
    tokens = patches + parts * (1 + c.registers)
    blocks = c.stages[-1]
    whole = sum(i in c.global_blocks for i in range(blocks))
    attention = 2 * D * tokens * (whole * tokens + (blocks - whole) * tokens // parts)
    return patches * D * c.in_channels * c.patch_size**2 + blocks * tokens * (4 * D * D + 2 * D * c.vit_mlp) + attention


def _level(c: ModelConfig, scale: float, pixels: int) -> int:
    D, n, half = c.vit_width, len(c.stages), c.width // 2
    resample = {2.0: pixels * n * D * (D // 2), 0.5: pixels * n * 9 * D * D}.get(scale, 0)
    c_in = n * (D // 2 if scale == 2.0 else D)
    return resample + pixels * (c_in * c.width + 6 * 9 * half * half + 5 * half * c.width)


def _decoder(c: ModelConfig, tokens: int, layers: int, queries: int) -> int:
    d, Q = c.width, queries
    heads = 2 * d * d + 4 * d  # boxes
    proposals = tokens * (d * d + d * c.class_rows) + min(Q, tokens) * heads
    points = 3 * d * c.cross_heads * len(c.levels) * c.points
    layer = Q * (4 * d * d + 2 * Q * d + points + d * d + 2 * d * c.decoder_ffn) + tokens * d * d
    refined = 1 if c.lite_refine else layers  # boxes and positions, once or after every layer
    return proposals + layers * layer + refined * Q * (3 * d * d + heads) + Q * d * c.class_rows


def _masks(c: ModelConfig, size_hw: tuple[int, int], layers: int, queries: int) -> int:
    d, pixels = c.width, (size_hw[0] // c.mask_stride) * (size_hw[1] // c.mask_stride)
    return pixels * (layers * (9 * d + d * d) + d * d + queries * d) + queries * 9 * d * d
