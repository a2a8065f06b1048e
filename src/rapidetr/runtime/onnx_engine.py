"""ONNX files run by ONNX Runtime: ours, which know everything, and those of the official package. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rapidetr.checkpoints.weights import WEIGHTS
from rapidetr.core.config import VARIANTS, ModelConfig, variant
from rapidetr.core.errors import BackendMissing, CheckpointError, ConfigError
from rapidetr.core.labels import LabelSpace
from rapidetr.core.preprocessing import Preprocessing
from rapidetr.runtime.artifact import Facts
from rapidetr.runtime.graph_engine import GraphEngine
from rapidetr.runtime.onnx_file import read_header

if TYPE_CHECKING:
    from rapidetr.runtime.artifact import Artifact


class OnnxEngine(GraphEngine):
    """One graph of one size in ONNX Runtime, float32 or, taking bytes, uint8. CheckpointError for a graph that is not RF-DETR's."""

    name, precision = "onnxruntime", "float32"

    def __init__(self, path: str | Path, config: ModelConfig | None = None, *, device: str = "cpu", threads: int | None = None) -> None:
        self.device = "cpu" if device == "auto" else device
        self.session = open_session(Path(path), self.device, threads)
        inputs, outputs = self.session.get_inputs(), {o.name: o.shape for o in self.session.get_outputs()}
        self.input = inputs[0].name
        super().__init__(Path(path), [entry.shape for entry in inputs], outputs, inputs[0].type == "tensor(uint8)", config)

    def _answers(self, pixels: np.ndarray, names: list[str]) -> list[np.ndarray]:
        if self.batch is None:
            return self.session.run(names, {self.input: pixels})
        whole = np.resize(pixels, (-(-len(pixels) // self.batch) * self.batch, *pixels.shape[1:]))  # fills up with pictures again
        parts = [self.session.run(names, {self.input: part}) for part in np.split(whole, len(whole) // self.batch)]
        return [np.concatenate(part)[: len(pixels)] for part in zip(*parts, strict=True)]


def open_onnx(
    path: str | Path,
    *,
    device: str = "auto",
    threads: int | None = None,
    model: str | None = None,
    dtype: Any = None,
    size_hw: tuple[int, int] | None = None,
    decoder_layers: int | None = None,
    queries: int | None = None,
) -> tuple[OnnxEngine, Facts]:
    """Engine and facts of one .onnx file. A file without our header is the official package's: `model` says which network it is
    where size, task and queries do not. ConfigError for a size, layers, queries or dtype that are not the stored ones.
    """
    path = Path(path)
    header = read_header(path)
    facts = None if header is None else _facts(path, header, model)
    engine = OnnxEngine(path, None if facts is None else facts.config, device=device, threads=threads)
    facts = facts or _guess(path, engine, model)
    engine.decoder_layers = facts.provenance.get("decoder_layers", facts.config.decoder_layers)
    if engine.class_rows != facts.labels.head_rows:
        raise CheckpointError(f"{path}: a class head of {engine.class_rows} rows, labels for {facts.labels.head_rows}; export it again")
    stored = {"size_hw": engine.size_hw, "decoder_layers": engine.decoder_layers, "queries": engine.queries, "dtype": engine.precision}
    kind = None if dtype is None else str(dtype).removeprefix("torch.")
    asked = {"size_hw": size_hw, "decoder_layers": decoder_layers, "queries": queries, "dtype": kind}
    for name, value in asked.items():
        if value is not None and value != stored[name]:
            told = ", ".join(f"{k} {v}" for k, v in stored.items())
            raise ConfigError(f"{path}: {name} is {value}, but the file was exported with {told}; leave it out, or export again")
    return engine, facts


def open_artifact_onnx(artifact: Artifact, device: str, threads: int | None) -> tuple[OnnxEngine, Facts]:
    """What `runtime/artifact.py` asks of an engine."""
    found, m = [file for name, file in artifact.files.items() if name.endswith(".onnx")], artifact.manifest
    if len(found) != 1:
        raise CheckpointError(f"{artifact.path}: has {len(found)} .onnx files; expected one, make the artifact again")
    engine, facts = open_onnx(found[0], device=device, threads=threads)
    pairs = {
        "size_hw": (engine.size_hw, m.size_hw),
        "queries": (engine.queries, m.queries),
        "decoder_layers": (engine.decoder_layers, m.decoder_layers),
        "labels": (facts.labels, m.facts().labels),
    }
    wrong = [name for name, (stored, told) in pairs.items() if stored != told]
    if wrong:
        raise CheckpointError(f"{artifact.path}: {found[0].name} has other {', '.join(wrong)} than its manifest says; make it again")
    return engine, facts


def open_session(path: Path, device: str, threads: int | None) -> Any:
    """An onnxruntime.InferenceSession. BackendMissing without ONNX Runtime or its CUDA part, CheckpointError for what it cannot load."""
    try:
        import onnxruntime
    except ImportError:
        raise BackendMissing("this artifact needs onnxruntime; install it with: pip install 'rapidetr[onnx]'") from None
    kind, _, number = device.partition(":")
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(kind)
    if provider not in onnxruntime.get_available_providers():
        raise BackendMissing(f"device is {device!r}; this onnxruntime runs on cpu, or on cuda with: pip install onnxruntime-gpu")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0  # 0: as many as there are cores
    options.log_severity_level = 3  # errors; they are raised as well
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[(provider, {"device_id": number} if number else {})])
    except Exception as problem:  # it has an error class for each kind of failure
        raise CheckpointError(f"{path}: ONNX Runtime cannot load it ({' '.join(str(problem).split())[:300]}); export it again") from None
    if provider not in session.get_providers():  # it would run on the CPU without a word
        raise BackendMissing(
            f"device is {device!r}, but ONNX Runtime could not start {provider}; look for cuDNN and the driver, or use cpu"
        )
    return session


def _facts(path: Path, header: dict[str, Any], model: str | None) -> Facts:
    try:
        config, labels = ModelConfig.from_dict(header["config"]), LabelSpace.from_dict(header["labels"])
        preprocessing = Preprocessing.from_dict(header["preprocessing"])
        provenance = {**header["provenance"], **header["graph"]}
    except (ConfigError, KeyError, TypeError, ValueError) as problem:
        raise CheckpointError(f"{path}: damaged header: {str(problem) or type(problem).__name__}; export it again") from None
    if model is not None and variant(model).name != config.name:
        raise CheckpointError(f"{path}: holds a {config.name}, not a {model}; leave model= out")
    return Facts(config, labels, preprocessing, str(header.get("license", "")), provenance)


def _guess(path: Path, engine: OnnxEngine, model: str | None) -> Facts:
    """Facts of a file of the official package, which says nothing but its shapes."""
    segmentation, size, rows = "masks" in engine.outputs, engine.size_hw, engine.class_rows
    alike = [v for v in VARIANTS.values() if (v.segmentation, v.size_hw, v.queries) == (segmentation, size, engine.queries)]
    if model is None and not alike:
        raise CheckpointError(
            f"{path}: does not tell which network it is, and none of the family has its size {size[0]}x{size[1]} with {engine.queries} "
            "queries; say which with model='small' or another"
        )
    chosen = variant(model) if model else alike[0]
    if engine.final or chosen.segmentation != segmentation or not isinstance(rows, int):
        raise CheckpointError(f"{path}: gives {', '.join(engine.outputs)}, which is not what a {chosen.name} gives")
    config = replace(chosen, size_hw=size, class_rows=rows, queries=engine.queries, in_channels=engine.channels)
    entry = WEIGHTS[chosen.name]
    license = "" if entry.license == "Apache-2.0" else entry.license  # derived weights keep the licence of their shapes
    note = f"{path.name} has no metadata: taken for a {chosen.name}, classes " + ("of COCO" if rows == 91 else "numbered")
    return Facts(config, LabelSpace.unnamed(rows), Preprocessing.official(), license, {"source": path.name}, (note,))
