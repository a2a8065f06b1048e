"""A local package for Roboflow's `inference-models` client: what `AutoModel.from_pretrained("<folder>")` loads, without key or network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from rapidetr.checkpoints.table import from_ours
from rapidetr.checkpoints.weights import WEIGHTS
from rapidetr.core.config import VARIANTS
from rapidetr.core.errors import ConfigError
from rapidetr.deployment.export_onnx import Exported, export_onnx
from rapidetr.deployment.package import Package, row_names, write_package
from rapidetr.pixels.prepare import normalization
from rapidetr.runtime.detector import Detector
from rapidetr.runtime.load import load

BACKENDS = ("onnx", "torch")
TASKS = {"detect": "object-detection", "segment": "instance-segmentation"}
CLIENT = "inference-models 0.39.6"  # that the format was tried with


def export_roboflow(
    source: Detector | str | Path,
    folder: str | Path,
    *,
    backend: str = "onnx",
    size_hw: tuple[int, int] | None = None,
    decoder_layers: int | None = None,
    queries: int | None = None,
    max_batch: int = 8,
    force: bool = False,
) -> Package:
    """The package in a new folder; atomic. `source`: a torch Detector, or what `rapidetr.load` takes.

    `backend`: "onnx" takes every network, size, number of decoder layers and of queries; "torch" holds the weights in official
    names, for published variants as they are. ConfigError for a backend that cannot hold the network.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"backend is {backend!r}; expected one of {', '.join(BACKENDS)}")
    detector = source if isinstance(source, Detector) else load(source, device="cpu")
    size = size_hw or detector.size_hw

    def fill(part: Path) -> tuple[Exported | None, tuple[str, ...]]:
        graph = None
        if backend == "onnx":
            cut = {"size_hw": size, "decoder_layers": decoder_layers, "queries": queries}
            graph = export_onnx(detector, part / "weights.onnx", **cut)  # type: ignore[arg-type]  # of two kinds
        else:
            _check_torch(detector, size, decoder_layers, queries)
            state = {n: t.detach().cpu().contiguous().clone() for n, t in from_ours(detector.model.state_dict(), detector.config).items()}
            torch.save({"model": state}, part / "weights.pth")
            _write(part / "model_type.json", {"model_type": f"rfdetr-{detector.config.name}"})
        lines, gap = row_names(detector.labels)
        model = {"model_architecture": "rfdetr", "task_type": TASKS[detector.config.task], "backend_type": backend}
        _write(part / "model_config.json", model)
        _write(part / "inference_config.json", _feeding(detector, size, gap, max_batch))
        (part / "class_names.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return graph, _notes(detector)

    return write_package(folder, "roboflow", fill, force=force)


def _check_torch(detector: Detector, size_hw: tuple[int, int], decoder_layers: int | None, queries: int | None) -> None:
    """The client builds the network from the name of its type alone, so it must be the one of the table."""
    config = detector.config
    published = [name for name in VARIANTS if not WEIGHTS[name].bundled]
    if config.name not in published:
        raise ConfigError(f"the torch back end knows published variants only, not {config.name}; use backend onnx")
    table = VARIANTS[config.name].at(size_hw=config.size_hw, class_rows=config.class_rows).to_dict()
    odd = [f"{name} {value} (expected {table[name]})" for name, value in config.to_dict().items() if value != table[name]]
    table_size = VARIANTS[config.name].size_hw
    odd += [f"size {size_hw[0]}x{size_hw[1]} (expected {table_size[0]}x{table_size[1]})"] * (size_hw != table_size)
    odd += [f"{name} given" for name, value in (("decoder layers", decoder_layers), ("queries", queries)) if value is not None]
    if odd:
        raise ConfigError(f"the torch back end runs a {config.name} as published: {', '.join(odd)}; use backend onnx")


def _feeding(detector: Detector, size_hw: tuple[int, int], gap: str | None, max_batch: int) -> dict[str, Any]:
    channels = detector.config.in_channels
    mean, std = normalization(detector.preprocessing, channels)
    drop = [] if gap is None else [{"type": "class_name_removal", "class_name": gap}]
    return {
        "network_input": {
            "training_input_size": {"height": size_hw[0], "width": size_hw[1]},
            "dynamic_spatial_size_supported": False,
            "color_mode": "rgb",
            "resize_mode": "stretch",
            "input_channels": channels,
            "scaling_factor": 255,
            "normalization": [[round(float(v), 7) for v in values] for values in (mean, std)],
        },
        "forward_pass": {"static_batch_size": None, "max_dynamic_batch_size": max_batch},
        "post_processing": {"type": "sigmoid", "fused": False},
        **({"class_names_operations": drop} if drop else {}),
    }


def _notes(detector: Detector) -> tuple[str, ...]:
    notes = [f"tried with {CLIENT}, whose boxes are whole pixels"]
    if detector.preprocessing.predict_filter != "bilinear-antialias":
        notes.append("the client resizes with the antialiased filter, as evaluation does; `predict` of this model uses the plain one")
    return tuple(notes)


def _write(path: Path, record: dict[str, Any]) -> None:
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
