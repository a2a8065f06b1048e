"""What TensorRT's own tool needs to build an engine: an ONNX file and the command. Nothing is built or run here."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from rapidetr.deployment.export_onnx import Exported, GraphOptions, export_onnx
from rapidetr.deployment.package import Package, write_package
from rapidetr.runtime.detector import Detector
from rapidetr.runtime.load import load

NOT_RUN = "trtexec was not run: speed and accuracy of the engine are unproven until it is built and judged on the GPU that it is for"


def export_tensorrt(
    source: Detector | str | Path,
    folder: str | Path,
    *,
    max_batch: int = 8,
    force: bool = False,
    **options: Unpack[GraphOptions],
) -> Package:
    """model.onnx and trtexec.txt in a new folder; atomic. `options`: see `export_onnx`; the engine takes 1 to `max_batch` pictures."""
    detector = source if isinstance(source, Detector) else load(source, device="cpu")

    def fill(part: Path) -> tuple[Exported | None, tuple[str, ...]]:
        graph = export_onnx(detector, part / "model.onnx", **options)
        text = f"# {NOT_RUN}\n# in this folder, on that GPU:\n{command(graph, detector.config.in_channels, max_batch)}\n"
        (part / "trtexec.txt").write_text(text, encoding="utf-8")
        return graph, (NOT_RUN,)

    return write_package(folder, "tensorrt", fill, force=force)


def command(graph: Exported, channels: int, max_batch: int) -> str:
    """The line for trtexec: fp16, tuned for single pictures, up to `max_batch` at once."""
    height, width = graph.size_hw
    shape = f"{height}x{width}x{channels}" if graph.inputs == "uint8" else f"{channels}x{height}x{width}"
    batches = {"minShapes": 1, "optShapes": 1, "maxShapes": max_batch}
    shapes = " ".join(f"--{option}=input:{batch}x{shape}" for option, batch in batches.items())
    return f"trtexec --onnx=model.onnx --saveEngine=model.engine --fp16 {shapes}"
