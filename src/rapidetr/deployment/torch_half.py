"""The folded graph in 16 bits a number, geometry in 32: where the processor multiplies these faster."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rapidetr.deployment.technique import Order
from rapidetr.deployment.torch_folded import TorchFolded
from rapidetr.runtime.host import has_bfloat16


@dataclass(frozen=True)
class TorchHalf(TorchFolded):
    root: Path = Path("/")  # of /proc, which tells the processor's flags

    def fits(self, order: Order) -> str | None:
        return why_not(self.precision, order.detector.engine.device, self.root)


def why_not(precision: str, device: str, root: Path = Path("/")) -> str | None:
    """Why a precision of 16 bits is not tried on a device; None where it may pay."""
    if device.startswith("cuda"):
        return None
    if precision == "float16":
        return f"float16 is fast on CUDA alone; the device is {device}"
    if device == "cpu" and not has_bfloat16(root):
        return "this processor has neither avx512_bf16 nor amx_bf16; without them bfloat16 is many times slower than float32"
    return None


BFLOAT16 = TorchHalf("torch-bfloat16", precision="bfloat16")
FLOAT16 = TorchHalf("torch-float16", precision="float16")
