"""Files of the Hugging Face `transformers` port, read as if they were official ones and written back."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rapidetr.checkpoints.table import names_of
from rapidetr.checkpoints.unpickle import Contents
from rapidetr.core.config import VARIANTS
from rapidetr.core.errors import CheckpointError, ConfigError
from rapidetr.core.labels import LabelSpace
from rapidetr.core.preprocessing import Preprocessing
from rapidetr.model.build import build_empty

if TYPE_CHECKING:
    from rapidetr.checkpoints.file import Checkpoint

KEY = "rapidetr"  # in config.json: what the port's own fields cannot hold
PROJECTOR_EPS = 1e-5  # default of norms inside the projector; the official package has 1e-6
_UNNAMED = re.compile(r"(LABEL_\d+|N/A|)")
_CONFIG_LIMIT = 8 << 20  # bytes of config.json


def is_huggingface(state: Mapping[str, Tensor]) -> bool:
    return any(name.endswith("reference_point_embed.weight") for name in state)


def contents_of(state: dict[str, Tensor], path: Path) -> Contents:
    """The same weights under official names; windows and size from the files beside it."""
    backbone = _backbone(_read_json(path.with_name("config.json")))
    if "model.model.query_feat.weight" in state:  # the segmentation model nests the detector
        state = {n.removeprefix("model."): t for n, t in state.items()}
    official = _to_official_names(state)
    args = {"num_windows": backbone.get("num_windows"), "resolution": _resolution(backbone, path)}
    return Contents(state=official, args=args, model_config=None, model_name=None, version=None, kind="huggingface")


def completed(checkpoint: Checkpoint, path: Path) -> Checkpoint:
    """With what config.json beside the file says: epsilon, classes and, in files that this package wrote, preprocessing and licence.

    CheckpointError for a config.json that contradicts the weights.
    """
    record = _read_json(path.with_name("config.json"))
    own = record.get(KEY)
    try:
        config = replace(checkpoint.config, projector_eps=float(record.get("layer_norm_eps", PROJECTOR_EPS)))
        if not isinstance(own, dict):
            return replace(checkpoint, config=config, labels=_labels(record, config.class_rows) or checkpoint.labels)
        labels, feed = LabelSpace.from_dict(own["labels"]), Preprocessing.from_dict(own["preprocessing"])
        if labels.head_rows != config.class_rows:
            raise ConfigError(f"labels for {labels.head_rows} rows, a head of {config.class_rows}")
    except (ConfigError, KeyError, TypeError, ValueError) as problem:
        raise CheckpointError(f"{path.with_name('config.json')}: damaged: {str(problem) or type(problem).__name__}") from None
    return replace(checkpoint, config=config, labels=labels, preprocessing=feed, license=checkpoint.license or str(own.get("license", "")))


def _labels(record: dict[str, Any], rows: int) -> LabelSpace | None:
    """Classes of the rows that `id2label` names; None where it names none."""
    told = record.get("id2label")
    names = {int(row): str(name) for row, name in told.items()} if isinstance(told, dict) else {}
    named = sorted(row for row, name in names.items() if row < rows and not _UNNAMED.fullmatch(name))
    return LabelSpace(tuple(names[row] for row in named), tuple(named), tuple(named), rows) if named else None


def _backbone(record: dict[str, Any]) -> dict[str, Any]:
    inner = record.get("backbone_config")
    return inner if isinstance(inner, dict) else {}


def _resolution(backbone: dict[str, Any], path: Path) -> Any:
    """The running size, if told: that of preprocessor_config.json, else that of the position grid where the network can run at it."""
    size = _read_json(path.with_name("preprocessor_config.json")).get("size")
    if isinstance(size, dict) and {"height", "width"} <= set(size):
        return [size["height"], size["width"]]
    side, patch, windows = (backbone.get(name) for name in ("image_size", "patch_size", "num_windows"))
    if isinstance(side, int) and isinstance(patch, int) and isinstance(windows, int) and patch * windows and side % (patch * windows):
        return None
    return side


def _to_official_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Hugging Face names to official ones, through ours: the widest network knows every name."""
    segmentation = any(n == "segmentation_bias" for n in state)
    widest = replace(VARIANTS["seg-2xlarge" if segmentation else "2xlarge"], decoder_layers=12, vit_depth=24, stages=(3, 6, 9, 12))
    ours = list(build_empty(widest).state_dict())
    theirs = names_of(replace(widest, segmentation=False), ours, "huggingface")
    official = names_of(widest, ours)
    renamed: dict[str, Tensor] = {}
    used: set[str] = set()
    for name, parts in theirs.items():
        if all(p in state for p in parts):
            used.update(parts)
            targets = official[name]
            tensors = [state[p] for p in parts]
            renamed.update(zip(targets, tensors if len(targets) == len(parts) else [torch.cat(tensors)], strict=True))
    renamed.update({n: t for n, t in state.items() if n not in used})
    return renamed


def _read_json(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8")) if path.stat().st_size <= _CONFIG_LIMIT else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}
