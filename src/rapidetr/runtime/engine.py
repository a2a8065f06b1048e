"""What an engine is: something that runs one network on one device at one size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from rapidetr.core.clock import StageClock
from rapidetr.core.outputs import Batch, Geometry, RawOutput
from rapidetr.core.preprocessing import Preprocessing


class Engine(Protocol):
    """Engines hold no state between calls, so that threads may share one."""

    name: str  # such as "torch"
    device: str
    precision: str  # such as "float32"
    size_hw: tuple[int, int]

    def prepare(
        self, pictures: Sequence[np.ndarray], preprocessing: Preprocessing, filter: str, geometries: Sequence[Geometry] | None
    ) -> Batch:
        """RGB pictures (pixels/prepare.py says which) to this engine's input."""

    def run(self, pixels: Any, clock: StageClock | None = None) -> RawOutput:
        """float32 [B, C, H, W], normalised, of this engine's size; stages "transfer" and "run" on the clock."""
