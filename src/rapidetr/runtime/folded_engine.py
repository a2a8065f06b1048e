"""The folded graph run by torch: as it is, or compiled by inductor. It takes pixels, normalization is part of its weights."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rapidetr.core.clock import StageClock
from rapidetr.core.errors import ConfigError
from rapidetr.core.outputs import Batch, Geometry, RawOutput
from rapidetr.core.preprocessing import Preprocessing
from rapidetr.model.fold import Folded
from rapidetr.model.rfdetr import RfDetr
from rapidetr.pixels.prepare import check_pictures, prepare, resize_antialiased
from rapidetr.runtime import prepare_torch
from rapidetr.runtime.aside import aside

if TYPE_CHECKING:
    from rapidetr.checkpoints.file import Checkpoint
    from rapidetr.runtime.artifact import Artifact

EAGER, COMPILED = "torch-folded", "torch-compile"
PRECISIONS = ("float32", "bfloat16", "float16")
_LEVELS = Preprocessing(mean=(0.0,), std=(1 / 255,))  # pixels as they are, 0 to 255


class FoldedEngine:
    """One size, layers and queries; geometry stays in fp32 in every precision.

    Compiled, it is made for one picture and runs those of a batch in turn, so that no call waits for a compiler; `compile_s` is
    what making it took.
    """

    def __init__(
        self,
        network: RfDetr,
        preprocessing: Preprocessing,
        *,
        device: str = "cpu",
        precision: str = "float32",
        size_hw: tuple[int, int] | None = None,
        decoder_layers: int | None = None,
        queries: int | None = None,
        compiled: bool = False,
    ) -> None:
        if precision not in PRECISIONS:
            raise ConfigError(f"precision is {precision!r}; expected one of {', '.join(PRECISIONS)}")
        folded = Folded(network, size_hw=size_hw, decoder_layers=decoder_layers, queries=queries, preprocessing=preprocessing).eval()
        self.name, self.device, self.precision = COMPILED if compiled else EAGER, device, precision
        self.size_hw, self.channels = folded.config.size_hw, folded.config.in_channels
        self.decoder_layers, self.queries = len(folded.layers), folded.queries
        self.dtype: torch.dtype = getattr(torch, precision)
        # feature maps are channels last; kernels in the same order need no conversion at every call
        folded = folded.to(device=device, dtype=self.dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.graph: Any = folded
        self.compile_s = 0.0
        if compiled:
            self._compile()

    def _compile(self) -> None:
        began = time.perf_counter()
        self.graph = torch.compile(self.graph, fullgraph=True, dynamic=False, options={"freezing": True})
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)  # torch about itself
            self.run(np.zeros((1, *self.size_hw, self.channels), np.uint8))
        self.compile_s = time.perf_counter() - began

    def prepare(
        self, pictures: Sequence[np.ndarray], preprocessing: Preprocessing, filter: str, geometries: Sequence[Geometry] | None
    ) -> Batch:
        """`pixels` [B, H, W, C], 0 to 255: uint8 where the filter gives whole levels, else float32."""
        if filter == "bilinear-antialias" and all(p.dtype == np.uint8 for p in pictures):
            places = check_pictures(pictures, self.size_hw, filter, geometries)
            return Batch(np.stack([resize_antialiased(p, self.size_hw) for p in pictures]), places, filter)
        if self.device.startswith("cuda"):
            images, places = prepare_torch.prepare(
                pictures, self.size_hw, _LEVELS, filter=filter, geometries=geometries, device=self.device
            )
            return Batch(images.permute(0, 2, 3, 1), places, filter)
        batch = prepare(pictures, self.size_hw, _LEVELS, filter=filter, geometries=geometries)
        return Batch(batch.pixels.transpose(0, 2, 3, 1), batch.geometries, filter)

    def run(self, pixels: Any, clock: StageClock | None = None) -> RawOutput:
        shape = tuple(getattr(pixels, "shape", ()))
        if len(shape) != 4 or shape[1:] != (*self.size_hw, self.channels) or not shape[0]:
            expected = ", ".join(map(str, (*self.size_hw, self.channels)))
            raise ConfigError(f"batch has shape {list(shape)}; expected [B, {expected}], pixels from 0 to 255, from prepare")
        with clock.stage("transfer") if clock else nullcontext():
            images_BHWC = torch.as_tensor(pixels).to(self.device, self.dtype).contiguous()
        with clock.stage("run") if clock else nullcontext(), torch.inference_mode():
            # copying to the host waits for the device, so the clock stops when the numbers are there
            boxes, logits, *masks = (part.float().cpu().numpy() for part in self._answers(images_BHWC))
        return RawOutput(logits, boxes, masks[0] if masks else None)

    def _answers(self, images_BHWC: Tensor) -> Sequence[Tensor]:
        if self.name == EAGER or len(images_BHWC) == 1:
            return self.graph(images_BHWC)
        each = [self.graph(image) for image in images_BHWC.split(1)]
        return [torch.cat(parts) for parts in zip(*each, strict=True)]


def open_artifact_folded(artifact: Artifact, device: str, threads: int | None) -> tuple[FoldedEngine, Checkpoint]:
    """What runtime/artifact.py asks of an engine."""
    from rapidetr.checkpoints.file import open_checkpoint
    from rapidetr.runtime.load import pick_device

    if threads is not None:
        torch.set_num_threads(threads)
    checkpoint, m = aside(lambda: open_checkpoint(artifact.path / "best.safetensors")), artifact.manifest

    def build() -> FoldedEngine:
        return FoldedEngine(
            checkpoint.network(),
            checkpoint.preprocessing,
            device=pick_device(device),
            precision=m.precision,
            size_hw=m.size_hw,
            decoder_layers=m.decoder_layers,
            queries=m.queries,
            compiled=m.engine == COMPILED,
        )

    return aside(build), checkpoint
