"""What flows through a prediction: pictures become a Batch, a network makes a RawOutput, `select` makes Detections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Geometry:
    """Where the pixels of one network input came from. Sizes are (height, width) in pixels of the user's picture."""

    image_hw: tuple[int, int]  # the picture, or the tile of it, that was stretched to the network input
    offset_yx: tuple[int, int] = (0, 0)  # upper left corner of the tile in the whole picture
    whole_hw: tuple[int, int] | None = None  # size of the whole picture when this is a tile

    @property
    def full_hw(self) -> tuple[int, int]:
        return self.whole_hw or self.image_hw


@dataclass(frozen=True)
class Batch:
    """`pixels` float32 [B, C, H, W], normalised; one Geometry for each picture; `filter` names the resize that was used."""

    pixels: Any  # a numpy array, or the engine's own kind of array if it prepares on its device
    geometries: tuple[Geometry, ...]
    filter: str


@dataclass(frozen=True)
class RawOutput:
    """What a network says, before selection; float32.

    logits [B, Q, C] (no sigmoid) · boxes [B, Q, 4] as centre x, centre y, width, height in units of the picture (may leave
    0..1) · masks [B, Q, h, w] as logits at a quarter of the input size, or None for a detection model.
    """

    logits: np.ndarray
    boxes: np.ndarray
    masks: np.ndarray | None = None
