"""The folded graph in eager torch: needs nothing that the detector did not need. Half precision and compiling build on it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from rapidetr.deployment.technique import Order
from rapidetr.runtime.artifact import Artifact, Manifest, write_artifact
from rapidetr.runtime.folded_engine import EAGER


@dataclass(frozen=True)
class TorchFolded:
    """Stores plain weights; folding them takes a moment at every load, and no code travels with them."""

    name: str
    engine: str = EAGER
    precision: str = "float32"

    def fits(self, order: Order) -> str | None:
        return None

    def make(self, order: Order, folder: Path) -> Artifact:
        made = Manifest.of(order.detector, source=order.source, command=order.command, parameters={"technique": self.name})
        with TemporaryDirectory() as aside:
            weights = order.detector.save(Path(aside) / "best.safetensors", deploy=True)
            return write_artifact(folder, {weights.name: weights}, replace(made, engine=self.engine, precision=self.precision))


FOLDED = TorchFolded("torch-folded")
