"""An ONNX file for ONNX Runtime: fp32, predicts without torch."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from rapidetr.deployment.export_onnx import Exported, export_onnx
from rapidetr.deployment.technique import Order
from rapidetr.runtime.artifact import REPORT, Artifact, Manifest, write_artifact
from rapidetr.runtime.onnx_engine import OnnxEngine

PACKAGES = ("onnx", "onnxruntime", "onnxscript")


@dataclass(frozen=True)
class OnnxArtifact:
    """Gives raw answers, because the best pairs alone could not serve every option of `predict`, such as more detections than
    queries. It takes bytes where the model's own filter gives whole levels: nothing is rounded that was not before."""

    name: str = "onnxruntime"
    opset: int = 20

    def fits(self, order: Order) -> str | None:
        missing = [name for name in PACKAGES if find_spec(name) is None]
        if missing:
            return f"{', '.join(missing)} is not installed; install it with: pip install 'rapidetr[onnx]'"
        device = order.detector.engine.device
        return None if device == "cpu" else f"it is made for the CPU; the device is {device}"

    def make(self, order: Order, folder: Path) -> Artifact:
        """Its report.json is what `export_onnx` measured."""
        antialias = order.detector.preprocessing.predict_filter == "bilinear-antialias"
        options = {"inputs": "uint8" if antialias else "normalized", "outputs": "raw", "opset": self.opset}
        made = Manifest.of(order.detector, source=order.source, command=order.command, parameters={"technique": self.name, **options})
        with TemporaryDirectory() as aside:
            path = Path(aside) / "model.onnx"
            exported = export_onnx(order.detector, path, **options)  # type: ignore[arg-type]
            files: dict[str, str | Path | bytes] = {path.name: path, REPORT: _report(replace(exported, path=path.name))}
            return write_artifact(folder, files, replace(made, engine=OnnxEngine.name, precision=OnnxEngine.precision))


def _report(exported: Exported) -> bytes:
    return (json.dumps(exported.to_dict(), indent=1) + "\n").encode()


ONNX = OnnxArtifact()
