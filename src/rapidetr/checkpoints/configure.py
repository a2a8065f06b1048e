"""Which network and which classes a file of the official package holds, read from its shapes and what it says of itself.

Shapes tell nearly everything and overrule names; only the number of windows and the running size are not in them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from rapidetr.checkpoints.unpickle import Contents
from rapidetr.core.config import VARIANTS, ModelConfig, variant
from rapidetr.core.errors import CheckpointError, ConfigError, NotSupportedYet
from rapidetr.core.labels import COCO_NAMES, LabelSpace

_VIT = "backbone.0.encoder.encoder."
MOST_SIDE = 8192  # pixels of an input; a picture of it takes 0.8 GB
_FIXED_BY_SHAPE = (
    "patch_size", "vit_width", "vit_depth", "levels", "width", "points", "decoder_layers", "segmentation", "in_channels",
)  # fmt: skip


def configure(contents: Contents, model: str | None = None) -> tuple[ModelConfig, list[str]]:
    """Configuration of an official state dict, and notes on what was decided; CheckpointError asks where it is ambiguous.

    `model` names the variant where the file does not tell; a variant whose shapes differ from the file's is refused.
    """
    state = contents.state
    if any(n.startswith("keypoint_embed") or "kp_cross_attn" in n for n in state):
        raise NotSupportedYet("this is a keypoint checkpoint; keypoints are not supported yet")
    found = _shapes(state)
    candidates = [v for v in VARIANTS.values() if all(getattr(v, k) == found[k] for k in _FIXED_BY_SHAPE)]
    if model is not None:
        wanted = variant(model)
        if wanted not in candidates:
            odd = [f"{k} {found[k]} (expected {getattr(wanted, k)})" for k in _FIXED_BY_SHAPE if getattr(wanted, k) != found[k]]
            fits = f"; the file looks like {' or '.join(v.name for v in candidates)}" if candidates else ""
            raise CheckpointError(f"the file is no {wanted.name}: {', '.join(odd)}{fits}")
        chosen, windows = wanted, wanted.windows
    else:
        chosen, windows = _choose(contents, found, candidates)
    size_hw = _running_size(contents, chosen, found, windows)
    notes = []
    if (chosen.name, found["position_grid"]) == (chosen.name, chosen.position_grid) and found["queries"] != chosen.queries:
        notes.append(f"{chosen.name} uses {chosen.queries} of the {found['queries']} queries a group that the file holds")
        found["queries"] = chosen.queries
    return replace(chosen, **found, windows=windows, size_hw=size_hw), notes


def _shapes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Every field of the configuration that shapes determine."""

    def shape(name: str) -> list[int]:
        if name not in state:
            raise CheckpointError(f"not an RF-DETR checkpoint: {name} is missing among {len(state)} tensors")
        return list(state[name].shape)

    def count(pattern: str) -> int:
        return len({m[1] for m in (re.match(pattern, n) for n in state) if m})

    width_vit, channels, _, patch = _dims(shape(_VIT + "embeddings.patch_embeddings.projection.weight"), 4)
    _, tokens, _ = _dims(shape(_VIT + "embeddings.position_embeddings"), 3)
    rows, width = _dims(shape("query_feat.weight"), 2)
    levels = _levels(state, count(r"backbone\.0\.projector\.stages\.(\d+)\."))
    groups = count(r"transformer\.enc_output\.(\d+)\.")
    if not groups or rows % groups:
        raise CheckpointError(f"query_feat.weight has {rows} rows for {groups} query groups; expected a multiple")
    heads = max(width // 16, 1)
    registers = f"{_VIT}embeddings.register_tokens"
    return {
        "patch_size": patch, "vit_width": width_vit, "in_channels": channels, "position_grid": math.isqrt(max(tokens - 1, 0)),
        "vit_depth": count(re.escape(_VIT) + r"encoder\.layer\.(\d+)\."), "width": width, "groups": groups, "queries": rows // groups,
        "registers": shape(registers)[1] if registers in state else 0, "levels": levels,
        "decoder_layers": count(r"transformer\.decoder\.layers\.(\d+)\."),
        "points": shape("transformer.decoder.layers.0.cross_attn.attention_weights.weight")[0] // (heads * len(levels)),
        "class_rows": shape("class_embed.bias")[0], "segmentation": "segmentation_head.bias" in state,
    }  # fmt: skip


def _dims(shape: list[int], count: int) -> list[int]:
    if len(shape) != count:
        raise CheckpointError(f"not an RF-DETR checkpoint: a tensor of {count} dimensions was expected, got shape {shape}")
    return shape


def _levels(state: Mapping[str, Tensor], count: int) -> tuple[str, ...]:
    """P3 has transposed convolutions, P5 strided ones, P4 nothing."""
    names = []
    for i in range(count):
        prefix = f"backbone.0.projector.stages_sampling.{i}.0.0."
        names.append("P3" if prefix + "weight" in state else "P5" if prefix + "conv.weight" in state else "P4")
    return tuple(names)


def _choose(contents: Contents, found: dict[str, Any], candidates: list[ModelConfig]) -> tuple[ModelConfig, int]:
    """The variant and its windows per side."""
    if not candidates:
        raise CheckpointError(
            f"no variant of the family has these shapes: {', '.join(f'{k} {found[k]}' for k in _FIXED_BY_SHAPE)}; "
            "files with other shapes load in our own format only (rapidetr.load of a .safetensors that Detector.save wrote)"
        )
    told = (contents.model_config or {}).get("num_windows", contents.args.get("num_windows"))
    named = _named(contents)
    same_grid = [v for v in candidates if v.position_grid == found["position_grid"]]
    for group in ([named] if named in candidates else [], same_grid, candidates):
        by_windows = [v for v in group if v and (told is None or v.windows == told)]
        if by_windows and len({v.windows for v in by_windows}) == 1:
            return by_windows[0], by_windows[0].windows
    names = " or ".join(repr(v.name) for v in candidates)
    raise CheckpointError(f"the file does not tell how many windows its encoder uses; say which it is with model={names}")


def _named(contents: Contents) -> ModelConfig | None:
    """The variant that the file names, if it names one."""
    for name in (contents.model_name, (contents.model_config or {}).get("model_name"), contents.args.get("pretrain_weights")):
        if isinstance(name, str):
            bare = re.sub(r"\.\w+$", "", name.replace("\\", "/").rsplit("/", 1)[-1]).lower()
            key = re.sub(r"^rf-?detr-?", "", bare).replace("xxlarge", "2xlarge").removesuffix("-2026")
            key = re.sub(r"^seg(?!-)", "seg-", key)
            if key in VARIANTS:
                return VARIANTS[key]
    return None


def _running_size(contents: Contents, chosen: ModelConfig, found: dict[str, Any], windows: int) -> tuple[int, int]:
    side = (contents.model_config or {}).get("resolution") or contents.args.get("resolution")
    if isinstance(side, list | tuple | int):
        sides = tuple(side) if isinstance(side, list | tuple) else (side, side)
        if len(sides) != 2 or not all(type(s) is int and 0 < s <= MOST_SIDE for s in sides):
            told = f"the file says it runs at {str(side)[:80]}"
            raise CheckpointError(f"{told}; expected one or two whole numbers of pixels, at most {MOST_SIDE}")
        size = (sides[0], sides[1])
    elif chosen.patch_size == 14:  # its position grid is DINOv2's, not the one of its input
        size = chosen.size_hw
    else:
        size = (found["position_grid"] * found["patch_size"],) * 2
    try:
        replace(chosen, windows=windows, size_hw=size)
    except ConfigError as problem:
        raise CheckpointError(f"the file says it runs at {size[0]}x{size[1]}: {problem}") from None
    return size


def label_space(contents: Contents, class_rows: int) -> LabelSpace:
    """The classes of an official file.

    COCO heads keep the sparse category ids; the rule is the official one: more rows than names, and the names are COCO's.
    Fine-tuned heads number their classes from 0 and have one row that belongs to none.
    """
    names = contents.args.get("class_names") or (contents.model_config or {}).get("class_names")
    if isinstance(names, dict):
        names = [names[k] for k in sorted(names, key=lambda k: (isinstance(k, str), k if isinstance(k, int | float | str) else str(k)))]
    names = [str(n) for n in names] if isinstance(names, list | tuple) else []
    told = contents.args.get("num_classes")
    num_classes = told if isinstance(told, int) and not isinstance(told, bool) else class_rows - 1
    coco = list(COCO_NAMES.values())
    if class_rows >= 91 and ((names == coco and num_classes > len(names)) or (not names and class_rows == 91)):
        return LabelSpace.coco(class_rows)
    if not names:
        names = [f"class {i}" for i in range(max(class_rows - 1, 1))]
    return LabelSpace.contiguous(names[:class_rows], head_rows=class_rows)
