"""What all engines of an exported graph share: its contract, input, answers. Nothing here imports torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rapidetr.core.clock import StageClock
from rapidetr.core.config import ModelConfig
from rapidetr.core.errors import CheckpointError, ConfigError
from rapidetr.core.outputs import Batch, Geometry, RawOutput
from rapidetr.core.preprocessing import Preprocessing
from rapidetr.pixels.prepare import check_pictures, prepare, resize_antialiased

RAW, FINAL = ("dets", "labels"), ("boxes", "scores", "labels", "queries")  # and "masks"; official names, and those of the best pairs
_SIDE_LIMIT = 8192  # pixels of a network input
_NEVER = np.float32(-100)  # a logit whose score is 0


class GraphEngine(ABC):
    """One graph of one size; whoever runs it says how in `_answers`."""

    name: str
    device: str
    precision: str

    def __init__(
        self,
        path: Path,
        inputs: Sequence[Sequence[Any]],
        outputs: Mapping[str, Sequence[Any]],
        takes_bytes: bool,
        config: ModelConfig | None,
    ) -> None:
        """Shapes of all inputs, and of all outputs by name; a side that is no int is free. CheckpointError where they are not RF-DETR's."""
        (entry, *more) = inputs
        self.takes_bytes = takes_bytes
        shape = [entry[i] for i in (0, 3, 1, 2)] if takes_bytes and len(entry) == 4 else entry
        fits = len(shape) == 4 and all(isinstance(side, int) and 1 <= side <= _SIDE_LIMIT for side in shape[1:])
        self.final = set(FINAL) <= set(outputs)
        if more or not fits or not (self.final or set(RAW) <= set(outputs)):
            raise CheckpointError(
                f"{path}: takes {entry} and {len(more)} inputs more, gives {', '.join(outputs)}; expected one picture of a fixed "
                f"size, giving {' and '.join(RAW)}, or {', '.join(FINAL)}"
            )
        self.batch: int | None = shape[0] if isinstance(shape[0], int) else None
        self.channels: int = shape[1]
        self.size_hw: tuple[int, int] = (shape[2], shape[3])
        self.outputs = [*(FINAL if self.final else RAW), *(["masks"] if "masks" in outputs else [])]
        self.taps = [name for name in outputs if name not in self.outputs]  # of a file exported with them; `run` leaves them out
        self.queries: int = outputs["labels"][1]
        self.class_rows: int | None = config.class_rows if config else outputs["labels"][-1]
        self.decoder_layers: int | None = config.decoder_layers if config else None

    def prepare(
        self, pictures: Sequence[np.ndarray], preprocessing: Preprocessing, filter: str, geometries: Sequence[Geometry] | None
    ) -> Batch:
        if self.takes_bytes:
            return prepare_bytes(pictures, self.size_hw, filter, geometries)
        return prepare(pictures, self.size_hw, preprocessing, filter=filter, geometries=geometries)

    def run(self, pixels: Any, clock: StageClock | None = None) -> RawOutput:
        shape = (*self.size_hw, self.channels) if self.takes_bytes else (self.channels, *self.size_hw)
        kind = np.uint8 if self.takes_bytes else np.float32
        if np.ndim(pixels) != 4 or pixels.shape[1:] != shape or not len(pixels) or pixels.dtype != kind:
            got = f"{getattr(pixels, 'dtype', type(pixels).__name__)} {list(np.shape(pixels))}"
            raise ConfigError(f"batch is {got}; expected {kind.__name__} [B, {', '.join(map(str, shape))}], from prepare")
        with clock.stage("run") if clock else nullcontext():
            found = dict(zip(self.outputs, self._answers(pixels, self.outputs), strict=True))
            return self._expanded(found) if self.final else RawOutput(found["labels"], found["dets"], found.get("masks"))

    def tapped(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """What the file gives besides its answers, by name, of a batch that `run` takes."""
        return dict(zip(self.taps, self._answers(pixels, self.taps), strict=True)) if self.taps else {}

    @abstractmethod
    def _answers(self, pixels: np.ndarray, names: list[str]) -> list[np.ndarray]:
        """The outputs of these names."""

    def _expanded(self, found: dict[str, np.ndarray]) -> RawOutput:
        """The best pairs as the output they were taken from; pairs that the graph left out score 0."""
        query, row = found["queries"], found["labels"]
        picture = np.arange(len(query))[:, None]
        logits = np.full((len(query), self.queries, self.class_rows or 1), _NEVER)
        score = np.clip(found["scores"].astype(np.float64), 1e-40, 1 - 1e-16)
        logits[picture, query, row] = np.log(score / (1 - score))
        corners = found["boxes"]
        boxes = np.zeros((len(query), self.queries, 4), np.float32)
        boxes[picture, query] = np.concatenate([(corners[..., :2] + corners[..., 2:]) / 2, corners[..., 2:] - corners[..., :2]], axis=-1)
        masks = None
        if "masks" in found:
            masks = np.zeros_like(found["masks"])
            masks[picture, query] = found["masks"]
        return RawOutput(logits, boxes, masks)


def prepare_bytes(
    pictures: Sequence[np.ndarray], size_hw: tuple[int, int], filter: str, geometries: Sequence[Geometry] | None = None
) -> Batch:
    """Batch uint8 [B, *size_hw, C]: pictures resized by `filter`, rounded to whole levels where the filter does not do so itself."""
    if filter == "bilinear-antialias" and all(p.dtype == np.uint8 for p in pictures):
        geometries = check_pictures(pictures, size_hw, filter, geometries)
        return Batch(np.stack([resize_antialiased(p, size_hw) for p in pictures]), geometries, filter)
    batch = prepare(pictures, size_hw, Preprocessing(mean=(0.0,), std=(1 / 255,)), filter=filter, geometries=geometries)
    return replace(batch, pixels=np.rint(batch.pixels).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1).copy())
