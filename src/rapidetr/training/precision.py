"""How many bits a number has while a network learns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from rapidetr.runtime.host import has_bfloat16


def half_precision(precision: str, device: str) -> torch.dtype | None:
    """The type of autocast, or None for float32: half precision is slower on a CPU without matrix units for it."""
    if precision == "auto":
        if not device.startswith("cuda"):
            return None
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return None if precision == "float32" else getattr(torch, precision)


@contextmanager
def fast_products(device: str) -> Iterator[None]:
    """On CUDA, float32 products in TF32 while a network learns, as in official training; the caller's setting comes back afterwards."""
    before = torch.get_float32_matmul_precision()
    if device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def precision_note(precision: str, device: str, root: Path = Path("/")) -> str | None:
    """What somebody who learns on a CPU would want to know; None where there is nothing to say. `root`: of /proc."""
    if device != "cpu" or precision == "float32":
        return None
    fast = has_bfloat16(root)
    if precision == "auto":
        return (
            "this processor computes in bfloat16: with --precision bfloat16 a step of Nano took 0.6 of the time (docs/fine-tune.md)"
            if fast
            else None
        )
    better = "bfloat16" if fast else "float32"
    return None if precision == better else f"{precision} is many times slower than {better} on this processor"
