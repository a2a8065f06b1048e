"""OpenVINO networks (model.xml beside model.bin) on the CPU. Nothing here imports torch."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rapidetr.core.config import ModelConfig
from rapidetr.core.errors import BackendMissing, CheckpointError, ConfigError, UnsafeFile
from rapidetr.runtime.graph_engine import GraphEngine

if TYPE_CHECKING:
    from rapidetr.runtime.artifact import Artifact, Facts

XML, BIN = "model.xml", "model.bin"
PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}  # of what is not quantized -> OpenVINO's name
_XML_LIMIT = 64 << 20  # bytes; a network of 12 blocks has under 1 MB


class OpenvinoEngine(GraphEngine):
    """One graph of one size and any batch size. CheckpointError for a graph that is not RF-DETR's.

    `precision` is float32, bfloat16 or int8; `floats` is that of the parts that are not int8. Where the processor has no
    bfloat16, OpenVINO computes in float32, and `floats` says so. Threads may share an engine: each has its own request.
    """

    name, device = "openvino", "cpu"

    def __init__(
        self,
        path: str | Path,
        config: ModelConfig | None = None,
        *,
        precision: str = "float32",
        floats: str | None = None,
        threads: int | None = None,
    ) -> None:
        self.precision = precision
        self.compiled = compile_network(Path(path), floats or precision, threads)
        self.floats = our_name(self.compiled.get_property("INFERENCE_PRECISION_HINT"))
        entry, outputs = self.compiled.inputs[0], {o.any_name: _sides(o) for o in self.compiled.outputs}
        self._local = threading.local()
        takes_bytes = entry.get_element_type().get_type_name() == "u8"
        super().__init__(Path(path), [_sides(i) for i in self.compiled.inputs], outputs, takes_bytes, config)

    def _answers(self, pixels: np.ndarray, names: list[str]) -> list[np.ndarray]:
        if not hasattr(self._local, "request"):
            self._local.request = self.compiled.create_infer_request()
        found = self._local.request.infer([np.ascontiguousarray(pixels)], share_inputs=True)
        return [found[name] for name in names]


def open_artifact_openvino(artifact: Artifact, device: str, threads: int | None) -> tuple[OpenvinoEngine, Facts]:
    """What `runtime/artifact.py` asks of an engine."""
    if device != "cpu":
        raise ConfigError(f"device is {device!r}; OpenVINO artifacts run on cpu")
    missing = {XML, BIN} - set(artifact.files)
    if missing:
        raise CheckpointError(f"{artifact.path}: has no {' and no '.join(sorted(missing))}; make the artifact again")
    manifest, facts = artifact.manifest, artifact.manifest.facts()
    floats = manifest.parameters.get("floats", manifest.precision)
    if floats not in PRECISIONS:
        raise CheckpointError(f"{artifact.path}: computes in {floats!r:.40}; expected {' or '.join(PRECISIONS)}, make it again")
    engine = OpenvinoEngine(artifact.files[XML], facts.config, precision=manifest.precision, floats=floats, threads=threads)
    engine.decoder_layers = manifest.decoder_layers
    if (engine.size_hw, engine.queries) != (manifest.size_hw, manifest.queries):
        size = f"{engine.size_hw[0]}x{engine.size_hw[1]}"
        raise CheckpointError(
            f"{artifact.path}: {XML} is for {size} and {engine.queries} queries, its manifest says {manifest}; make it again"
        )
    if engine.floats == floats:
        return engine, facts
    note = f"this processor has no {floats}: OpenVINO computes in {engine.floats}, slower than where the artifact was made"
    return engine, replace(facts, notes=(*facts.notes, note))


def compile_network(path: Path, floats: str, threads: int | None) -> Any:
    """An openvino.CompiledModel of the .xml file `path` and the .bin file beside it.

    BackendMissing without OpenVINO; UnsafeFile for a description that is too long to be parsed; CheckpointError for what OpenVINO
    cannot load, operations of extensions among it: none are registered.
    """
    try:
        import openvino
    except ImportError:
        raise BackendMissing("this artifact needs openvino; install it with: pip install 'rapidetr[openvino]'") from None
    if path.stat().st_size > _XML_LIMIT:
        raise UnsafeFile(f"{path}: has {path.stat().st_size} bytes; expected up to {_XML_LIMIT}, it was not loaded")
    try:
        core = openvino.Core()
        return core.compile_model(core.read_model(path, path.with_suffix(".bin")), "CPU", settings(floats, threads))
    except Exception as problem:  # RuntimeError mostly; parsing has others
        raise CheckpointError(f"{path}: OpenVINO cannot load it ({' '.join(str(problem).split())[:300]}); export it again") from None


def settings(floats: str, threads: int | None) -> dict[str, Any]:
    """How a network is compiled; without `threads` OpenVINO takes all cores."""
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": PRECISIONS[floats],
        # bound to a core, a thread waits for whatever else runs there: 8 times the latency beside one busy process on two cores
        "ENABLE_CPU_PINNING": False,
        **({} if threads is None else {"INFERENCE_NUM_THREADS": threads}),
    }


def our_name(kind: Any) -> str:
    """Of an openvino.Type, such as bfloat16; its `to_dtype` calls bfloat16 float16, as numpy has none."""
    name: str = kind.get_type_name()
    return next((ours for ours, theirs in PRECISIONS.items() if theirs == name), name)


def _sides(port: Any) -> list[int | None]:
    """A shape; None is a free side."""
    return [side.get_length() if side.is_static else None for side in port.get_partial_shape()]
