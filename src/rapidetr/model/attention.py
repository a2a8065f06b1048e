"""Attention as torch has it, and a faster one where a CPU learns in half precision.

There torch's fused kernel does not use the units for half precision: forward and backward together it took 1.8 to 3 times as long as
plain products (torch 2.13, AVX-512 with bf16). In float32 it is the faster one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def attend(q_BMNd: Tensor, k_BMNd: Tensor, v_BMNd: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, [B, heads, N, d]."""
    narrow = q_BMNd.device.type == "cpu" and q_BMNd.dtype in (torch.bfloat16, torch.float16)
    if narrow and q_BMNd.requires_grad and torch.is_grad_enabled():
        from rapidetr.model.frugal import AttentionInPieces

        parts = (part.flatten(0, 1) for part in (q_BMNd * q_BMNd.shape[-1] ** -0.5, k_BMNd, v_BMNd))
        mixed: Tensor = AttentionInPieces.apply(*parts)
        return mixed.view(q_BMNd.shape)
    return F.scaled_dot_product_attention(q_BMNd, k_BMNd, v_BMNd)
