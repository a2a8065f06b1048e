"""The folded graph compiled by torch's inductor, at every load: a minute or more, less where its cache on disk is warm."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass

from rapidetr.deployment.technique import Order
from rapidetr.deployment.torch_folded import TorchFolded
from rapidetr.deployment.torch_half import why_not
from rapidetr.runtime.folded_engine import COMPILED

COMPILERS = {"win32": ("cl",), "darwin": ("clang++",)}  # elsewhere g++ or clang++


@dataclass(frozen=True)
class TorchCompile(TorchFolded):
    engine: str = COMPILED

    def fits(self, order: Order) -> str | None:
        device = order.detector.engine.device
        names = (os.environ["CXX"],) if "CXX" in os.environ else COMPILERS.get(sys.platform, ("g++", "clang++"))
        if device == "cpu" and not any(map(shutil.which, names)):
            return f"torch.compile needs a C++ compiler, and there is no {' or '.join(names)}; install one, or set CXX"
        return None if self.precision == "float32" else why_not(self.precision, device)


COMPILE = TorchCompile("torch-compile")
COMPILE_BFLOAT16 = TorchCompile("torch-compile-bfloat16", precision="bfloat16")
COMPILE_FLOAT16 = TorchCompile("torch-compile-float16", precision="float16")
