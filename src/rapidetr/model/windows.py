"""Cutting a grid of tokens into windows and putting it together again. Windows run row by row, tokens inside them too.

Batch index of a window = picture * windows^2 + window row * windows + window column, so that all windows of one picture
lie side by side and a global block is a mere view. Height and width are kept apart: grids need not be square.
"""

from __future__ import annotations

from torch import Tensor


def split(grid_BhwD: Tensor, windows: int) -> Tensor:
    """[B, h, w, D] -> [B * windows^2, h/windows * w/windows, D]."""
    B, h, w, D = grid_BhwD.shape
    cut = grid_BhwD.reshape(B, windows, h // windows, windows, w // windows, D)
    return cut.transpose(2, 3).reshape(B * windows * windows, -1, D)


def merge(tokens_BND: Tensor, windows: int, grid_hw: tuple[int, int]) -> Tensor:
    """[B * windows^2, n, D] -> [B, h, w, D]; the inverse of `split`."""
    h, w = grid_hw
    D = tokens_BND.shape[-1]
    cut = tokens_BND.reshape(-1, windows, windows, h // windows, w // windows, D)
    return cut.transpose(2, 3).reshape(-1, h, w, D)
