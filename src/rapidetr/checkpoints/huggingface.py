"""Files of the Hugging Face `transformers` port, read as if they were official ones and written back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rapidetr.checkpoints.table import names_of
from rapidetr.checkpoints.unpickle import Contents
from rapidetr.core.config import VARIANTS
from rapidetr.model.build import build_empty

PROJECTOR_EPS = 1e-5  # norms inside the projector; the official package has 1e-6
_CONFIG_LIMIT = 8 << 20  # bytes of config.json


def is_huggingface(state: Mapping[str, Tensor]) -> bool:
    return any(name.endswith("reference_point_embed.weight") for name in state)


def contents_of(state: dict[str, Tensor], path: Path) -> Contents:
    """The same weights under official names; windows, size and class names from config.json beside the file."""
    beside = _read_json(path.with_name("config.json"))
    backbone = beside.get("backbone_config") or {}
    if "model.model.query_feat.weight" in state:  # the segmentation model nests the detector
        state = {n.removeprefix("model."): t for n, t in state.items()}
    official = _to_official_names(state)
    args: dict[str, Any] = {"num_windows": backbone.get("num_windows"), "resolution": backbone.get("image_size")}
    labels = beside.get("id2label") or {}
    names = [str(labels[k]) for k in sorted(labels, key=int)] if all(str(k).isdigit() for k in labels) else []
    if names and not all(n.startswith("LABEL_") for n in names) and len(names) < len(official.get("class_embed.bias", ())):
        args["class_names"] = names
    return Contents(state=official, args=args, model_config=None, model_name=None, version=None, kind="huggingface")


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
