"""The network as it is, run by torch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from rapidetr.core.clock import StageClock
from rapidetr.core.config import check_size
from rapidetr.core.errors import ConfigError
from rapidetr.core.outputs import Batch, Geometry, RawOutput
from rapidetr.core.preprocessing import Preprocessing
from rapidetr.model.rfdetr import RfDetr
from rapidetr.pixels.prepare import prepare

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


class TorchEngine:
    """Eager torch on CPU or GPU. Geometry stays in fp32 in every precision."""

    name = "torch"

    def __init__(
        self,
        network: RfDetr,
        *,
        device: str = "cpu",
        dtype: str | torch.dtype | None = None,
        size_hw: tuple[int, int] | None = None,
        decoder_layers: int | None = None,
        queries: int | None = None,
    ) -> None:
        config = network.config
        self.size_hw = size_hw or config.size_hw
        check_size(self.size_hw, config.patch_size, config.windows)
        for name, value, most in (("decoder_layers", decoder_layers, config.decoder_layers), ("queries", queries, config.queries)):
            if value is not None and not 1 <= value <= most:
                raise ConfigError(f"{name} is {value}; {config.name} has 1 to {most}")
        self.decoder_layers, self.queries = decoder_layers, queries
        self.dtype = _dtype(dtype)
        self.precision = str(self.dtype).removeprefix("torch.")
        self.device = device
        self.network = network.to(device=device, dtype=self.dtype).eval()

    def prepare(
        self, pictures: Sequence[np.ndarray], preprocessing: Preprocessing, filter: str, geometries: Sequence[Geometry] | None
    ) -> Batch:
        if self.device.startswith("cuda"):
            from rapidetr.runtime import prepare_torch

            # pictures travel as bytes and are resized on the device; the twin is tested equal
            images, places = prepare_torch.prepare(
                pictures, self.size_hw, preprocessing, filter=filter, geometries=geometries, device=self.device
            )
            return Batch(images, places, filter)
        return prepare(pictures, self.size_hw, preprocessing, filter=filter, geometries=geometries)

    def run(self, pixels: Any, clock: StageClock | None = None) -> RawOutput:
        pixels = self._check(pixels)
        with clock.stage("transfer") if clock else nullcontext():
            images = torch.as_tensor(pixels).to(self.device, self.dtype)
        with clock.stage("run") if clock else nullcontext(), torch.inference_mode():
            output = self.network(images, decoder_layers=self.decoder_layers, queries=self.queries)
            # copying to the host waits for the device, so the clock stops when the numbers are there
            logits, boxes = output.logits.float().cpu().numpy(), output.boxes.float().cpu().numpy()
            masks = None if output.masks is None else output.masks.float().cpu().numpy()
        return RawOutput(logits, boxes, masks)

    def _check(self, pixels: Any) -> Any:
        shape = tuple(getattr(pixels, "shape", ()))
        expected = (self.network.config.in_channels, *self.size_hw)
        if len(shape) != 4 or shape[1:] != expected or shape[0] < 1:
            raise ConfigError(f"batch has shape {list(shape)}; expected [B, {', '.join(map(str, expected))}] (float32, normalised)")
        if not str(pixels.dtype).endswith("float32"):
            raise ConfigError(f"batch has dtype {pixels.dtype}; expected float32, normalised")
        return pixels


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    name = str(dtype or "float32").removeprefix("torch.")
    if name not in _DTYPES:
        raise ConfigError(f"dtype is {dtype!r}; expected one of {', '.join(_DTYPES)}")
    return _DTYPES[name]
