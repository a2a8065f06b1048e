"""A model repository for NVIDIA Triton: <folder>/<name>/config.pbtxt, labels.txt and 1/model.onnx.

Fields: https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Unpack

from rapidetr.core.errors import ConfigError
from rapidetr.deployment.export_onnx import Exported, GraphOptions, export_onnx
from rapidetr.deployment.package import Package, row_names, write_package
from rapidetr.runtime.detector import Detector
from rapidetr.runtime.load import load
from rapidetr.runtime.places import PLAIN

TYPES = {1: "TYPE_FP32", 2: "TYPE_UINT8", 7: "TYPE_INT64"}  # of onnx.TensorProto
QUEUE_DELAY_US = 500  # that a request waits for others to fill its batch


def export_triton(
    source: Detector | str | Path,
    folder: str | Path,
    *,
    name: str | None = None,
    max_batch: int = 8,
    force: bool = False,
    **options: Unpack[GraphOptions],
) -> Package:
    """The repository in a new folder, with one model of version 1; atomic.

    `source`: a torch Detector, or what `rapidetr.load` takes. `name` of the model: that of the network unless told. Line i of
    labels.txt names row i of the class head. `options`: see `export_onnx`. ConfigError for a name that is no plain file name.
    """
    detector = source if isinstance(source, Detector) else load(source, device="cpu")
    name = name or detector.config.name
    if not PLAIN.fullmatch(name):
        raise ConfigError(f"name is {name!r}; expected a plain file name, such as {detector.config.name}")

    def fill(part: Path) -> tuple[Exported | None, tuple[str, ...]]:
        (part / name / "1").mkdir(parents=True)
        path = part / name / "1" / "model.onnx"
        graph = export_onnx(detector, path, **options)
        (part / name / "labels.txt").write_text("".join(f"{line}\n" for line in row_names(detector.labels)[0]), encoding="utf-8")
        (part / name / "config.pbtxt").write_text(_config(name, path, max_batch), encoding="utf-8")
        return graph, ("not run in a Triton server here",)

    return write_package(folder, "triton", fill, force=force)


def _config(name: str, path: Path, max_batch: int) -> str:
    """Text of config.pbtxt; shapes are those of the graph, without the batch."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    tensors = {"input": [_tensor(value) for value in graph.input], "output": [_tensor(value) for value in graph.output]}
    lines = [f"name: {json.dumps(name)}", 'platform: "onnxruntime_onnx"', f"max_batch_size: {max_batch}"]
    for kind, described in tensors.items():
        lines += [f"{kind} [", *(f"  {{ {one} }}{',' * (i + 1 < len(described))}" for i, one in enumerate(described)), "]"]
    lines.append(f"dynamic_batching {{ max_queue_delay_microseconds: {QUEUE_DELAY_US} }}")
    return "".join(f"{line}\n" for line in lines)


def _tensor(value: Any) -> str:
    kind = value.type.tensor_type
    dims = ", ".join(str(d.dim_value) for d in kind.shape.dim[1:])
    file = ' label_filename: "labels.txt"' if value.name == "labels" and kind.elem_type == 1 else ""
    return f'name: "{value.name}" data_type: {TYPES[kind.elem_type]} dims: [ {dims} ]{file}'
