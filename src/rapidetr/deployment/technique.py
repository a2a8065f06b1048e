"""What an optimization is: something that makes an artifact of a detector, one file each, each removable by one line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np

from rapidetr.core.errors import ConfigError
from rapidetr.pixels.decode import load_picture
from rapidetr.runtime.artifact import Artifact
from rapidetr.runtime.detector import Detector

# name -> "module:object", imported when it is tried. Order is that of trying.
TECHNIQUES = {
    "torch-folded": "rapidetr.deployment.torch_folded:FOLDED",
    "torch-bfloat16": "rapidetr.deployment.torch_half:BFLOAT16",
    "torch-float16": "rapidetr.deployment.torch_half:FLOAT16",
    "torch-compile": "rapidetr.deployment.torch_compile:COMPILE",
    "torch-compile-bfloat16": "rapidetr.deployment.torch_compile:COMPILE_BFLOAT16",
    "torch-compile-float16": "rapidetr.deployment.torch_compile:COMPILE_FLOAT16",
    "onnxruntime": "rapidetr.deployment.onnx_artifact:ONNX",
    "openvino-float32": "rapidetr.deployment.openvino:FLOAT32",
    "openvino-bfloat16": "rapidetr.deployment.openvino:BFLOAT16",
    "openvino-int8": "rapidetr.deployment.openvino_int8:INT8",
}


@dataclass(frozen=True, eq=False)
class Decoded(Sequence[np.ndarray]):
    """Pictures as RGB uint8 [H, W, 3], each decoded when it is asked for: many may be large, and one may be damaged (ImageError)."""

    sources: Sequence[Any]  # as for `predict`

    def __len__(self) -> int:
        return len(self.sources)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> Decoded: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | Decoded:
        return Decoded(self.sources[index]) if isinstance(index, slice) else load_picture(self.sources[index]).pixels


@dataclass(frozen=True, eq=False)
class Order:
    """What an artifact is made from and for."""

    detector: Detector  # a torch detector; size, decoder layers and queries are those that it runs with
    source: Path  # its checkpoint file, hashed into the manifest
    threads: int | None = None  # CPU threads that it will run with; None: the engine decides
    pictures: Sequence[np.ndarray] = field(default_factory=tuple)  # RGB uint8 [H, W, 3] of the user, to calibrate with; may be none
    command: str | None = None  # as typed; None: that of this process


class Technique(Protocol):
    """`make` writes a new folder (runtime/artifact.py: whole or not there) that `rapidetr.load` opens."""

    name: str  # its key in TECHNIQUES

    def fits(self, order: Order) -> str | None:
        """Why it is not tried here, such as a missing package or a processor without bf16; None where it is."""

    def make(self, order: Order, folder: Path) -> Artifact:
        """The artifact in `folder`."""


def precision_of(name: str) -> str:
    """What the name of a technique ends with, where that is a precision; else float32."""
    return next((kind for kind in ("bfloat16", "float16", "int8") if name.endswith(f"-{kind}")), "float32")


def technique(name: str) -> Technique:
    """ConfigError lists those there are."""
    if name not in TECHNIQUES:
        raise ConfigError(f"technique is {name!r}; expected one of {', '.join(TECHNIQUES)}")
    module, _, attribute = TECHNIQUES[name].partition(":")
    found: Any = getattr(import_module(module), attribute)
    return found
