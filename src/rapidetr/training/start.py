"""The network that a run starts from: fresh, or a checkpoint whose class head is mapped to the dataset's classes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from rapidetr.checkpoints.adapt import adapt
from rapidetr.checkpoints.file import Checkpoint
from rapidetr.core.config import ModelConfig, variant
from rapidetr.core.errors import ConfigError
from rapidetr.core.labels import LabelSpace
from rapidetr.core.preprocessing import Preprocessing
from rapidetr.model.build import build
from rapidetr.runtime.detector import Detector
from rapidetr.runtime.load import load
from rapidetr.training.recipe import Recipe

Model = str | Path | Detector | ModelConfig
_SHAPE = (
    "patch_size",
    "windows",
    "vit_width",
    "vit_depth",
    "vit_heads",
    "vit_mlp",
    "stages",
    "levels",
    "width",
    "decoder_layers",
    "decoder_ffn",
)
PRIOR_BIAS = -math.log(99)  # a fresh class starts at a probability of 1 %


def describe_model(model: Model) -> str:
    """What recipe.json says a run starts from."""
    return f"{model.config.name} detector" if isinstance(model, Detector) else model.name if isinstance(model, ModelConfig) else str(model)


def make_start(
    model: Model, labels: LabelSpace, recipe: Recipe, *, class_rows: str = "by-name", accept_license: str | None = None
) -> Checkpoint:
    """A checkpoint with a head for `labels`, at the recipe's size and number of groups; its notes say what was done.

    `class_rows`: "by-name" keeps rows of known classes, "cyclic" is the official rule, row i from row i modulo the old rows.
    """
    if class_rows not in ("by-name", "cyclic"):
        raise ConfigError(f"class_rows is {class_rows!r}; expected by-name or cyclic")
    if recipe.weights == "random" or isinstance(model, ModelConfig):
        return _fresh(model, labels, recipe)
    source = model if recipe.weights == "pretrained" else recipe.weights
    detector = source if isinstance(source, Detector) else load(source, device="cpu", accept_license=accept_license)
    have, state, mask_notes = detector.config, {n: t.to("cpu", torch.float32) for n, t in detector.model.state_dict().items()}, list[str]()
    if recipe.weights != "pretrained":
        have, state, mask_notes = _become(variant(describe_model(model)), have, state, recipe.seed)
    rows = labels.head_rows if class_rows == "cyclic" else have.class_rows
    want = replace(have, size_hw=recipe.size_hw or have.size_hw, groups=recipe.groups or have.groups, class_rows=rows)
    state, notes = adapt(state, have, want)
    head_notes: list[str] = []
    if class_rows == "by-name":
        state, head_notes = map_classes(state, detector.labels, labels, recipe.seed)
    provenance = {"start": describe_model(source)}
    filters = replace(detector.preprocessing, predict_filter="bilinear-antialias", evaluate_filter="bilinear-antialias")
    config = want.at(class_rows=labels.head_rows)
    return Checkpoint(state, config, labels, filters, detector.license, provenance, (*detector.notes, *mask_notes, *notes, *head_notes))


def _become(want: ModelConfig, have: ModelConfig, state: dict[str, Tensor], seed: int) -> tuple[ModelConfig, dict[str, Tensor], list[str]]:
    """Weights of a detector as the start of a segmentation model (with a fresh mask head), or the other way round."""
    like = replace(have, name=want.name, segmentation=want.segmentation, mask_stride=want.mask_stride)
    fresh, odd = build(like, seed=seed).state_dict(), [n for n in _SHAPE if getattr(have, n) != getattr(want, n)]
    if odd:
        told = ", ".join(f"{n} {getattr(have, n)} -> {getattr(want, n)}" for n in odd)
        raise ConfigError(f"these weights cannot start a {want.name}: {told}; name weights of the same shape")
    notes = [] if have.segmentation == want.segmentation else ["mask head started fresh" if want.segmentation else "mask head dropped"]
    return like, {n: state.get(n, t) for n, t in fresh.items()}, notes


def _fresh(model: Model, labels: LabelSpace, recipe: Recipe) -> Checkpoint:
    if recipe.weights != "random" or isinstance(model, Detector):
        raise ConfigError(f"model {describe_model(model)} with weights={recipe.weights!r}; a configuration goes with weights='random'")
    config = model if isinstance(model, ModelConfig) else variant(str(model))
    config = replace(config, size_hw=recipe.size_hw or config.size_hw, groups=recipe.groups or config.groups, class_rows=labels.head_rows)
    state = build(config, seed=recipe.seed).state_dict()
    return Checkpoint(state, config, labels, Preprocessing(), "", {"start": f"random weights, seed {recipe.seed}"}, ("random weights",))


def map_classes(state: dict[str, Tensor], have: LabelSpace, want: LabelSpace, seed: int) -> tuple[dict[str, Tensor], list[str]]:
    """Class heads with the rows of `want`: copied where a class of that name was known, fresh where not; and notes.

    A head that has the same classes in the same rows stays as it is.
    """
    if (have.names, have.rows, have.head_rows) == (want.names, want.rows, want.head_rows):
        return state, ["class head kept: the classes are the same"]
    known = dict(zip(reversed(have.names), reversed(have.rows), strict=True))  # of a name that is used twice, the first row
    pairs = [(row, known[name]) for name, row in zip(want.names, want.rows, strict=True) if name in known]
    new, old = [p[0] for p in pairs], [p[1] for p in pairs]
    fresh = _fresh_rows(want.head_rows, state["class_head.weight"].shape[1], seed)
    state = dict(state)
    for name in [n for n in state if n.startswith("class_head.") or ".classes." in n]:
        rows = fresh[name.rpartition(".")[2]].clone()
        rows[new] = state[name][old]
        state[name] = rows
    kept, others = [n for n in want.names if n in known], [n for n in want.names if n not in known]
    told = [
        f"class rows {how}: {len(names)} ({_some(names)})" for how, names in (("kept by name", kept), ("started fresh", others)) if names
    ]
    return state, told


def _fresh_rows(rows: int, width: int, seed: int) -> dict[str, Tensor]:
    """As a new linear layer starts, with the bias of rare classes; alike in all groups, as in official training."""
    generator = torch.Generator().manual_seed(seed)
    weight = (2 * torch.rand(rows, width, generator=generator) - 1) / math.sqrt(width)
    return {"weight": weight, "bias": torch.full((rows,), PRIOR_BIAS)}


def _some(names: list[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
