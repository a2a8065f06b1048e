"""How a network is trained: one frozen record, written into the run's folder, compared before a run goes on."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from rapidetr.core.errors import ConfigError

VERSION = 1  # of the meaning of the fields; a default that changes gets a new one


def _told(default: Any, about: str) -> Any:
    """A field that can say what it is, to the command line and to documentation."""
    return field(default=default, metadata={"about": about})


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what comes out of training; the defaults are the published recipe of RF-DETR 1.11.

    Where it runs (device, workers, number of processes) changes nothing but rounding and is not part of it.
    """

    version: int = VERSION
    seed: int = _told(0, "of everything that is drawn by chance")
    weights: str = _told("pretrained", "pretrained, random, or a file or run of the same shape, such as of a detector for its seg- sibling")
    size_hw: tuple[int, int] | None = _told(None, "input size (height, width); default: the model's own")
    groups: int | None = _told(None, "query groups in training, fewer are faster; default: all of the model's")
    # how long, and what learns when
    epochs: int = _told(100, "how often every picture is seen; `stages` replace it")
    stages: str = _told("", "what learns when, such as head:5,blocks8-11:10@0.3,all:35@0.1 (training/stages.py)")
    batch_size: int = _told(4, "pictures of one forward pass, all processes together")
    accumulate: int = _told(1, "forward passes of one optimizer step")
    # losses
    classification: str = _told("ia-bce", "loss of classes: ia-bce, focal, varifocal or position")
    ce: float = _told(1.0, "weight of the class loss")
    bbox: float = _told(5.0, "weight of the L1 loss of boxes")
    giou: float = _told(2.0, "weight of the GIoU loss of boxes")
    mask_ce: float = _told(5.0, "weight of the cross entropy of masks")
    mask_dice: float = _told(5.0, "weight of the Dice loss of masks")
    class_weights: tuple[float, ...] | str | None = _told(
        None, "for every class: what missing such an object costs, or auto: more for rare ones; default: 1"
    )
    sum_group_losses: bool = _told(False, "do not divide the losses by the number of query groups")
    # optimizer
    optimizer: str = _told("AdamW", "any name of torch.optim; Muon is ours, for matrices of any shape")
    optimizer_options: dict[str, Any] | None = _told(None, "its further arguments, as JSON")  # noqa: RUF009 - a field
    rates: str = _told("layered", "layered, or uniform: `lr` for all and no decay of vectors, for random weights")
    lr: float = _told(1e-4, "learning rate")
    lr_encoder: float = _told(1.5e-4, "learning rate of the encoder, before its decays")
    layer_decay: float = _told(0.8, "factor of the rate from one encoder block to the one before it")
    component_decay: float = _told(0.7, "factor of the decoder's rate; squared, of the encoder's")
    weight_decay: float = _told(1e-4, "weight decay")
    clip: float = _told(0.1, "largest norm of the gradient; 0: any")
    drop_path: float = _told(0.0, "how often training skips the encoder's last block; earlier ones less")
    # schedule
    schedule: str = _told("step", "step or cosine")
    warmup_epochs: float = _told(0.0, "epochs in which the rate rises from 0")
    lr_drop: float = _told(100.0, "step: epochs before the rate falls to a tenth")
    min_factor: float = _told(0.0, "cosine: factor that the rate ends with")
    # averaged weights
    ema_decay: float = _told(0.993, "of the averaged weights; 0: no average")
    ema_tau: float = _told(100.0, "steps in which the official decay warms up")
    ema_warmup: str = _told("official", "official, or ratio: min(decay, (1 + n) / (10 + n))")
    # precision and memory
    precision: str = _told("auto", "float32, bfloat16, float16, or auto: float32 on CPU, else half")
    checkpointing: bool = _told(False, "compute the encoder twice: less memory, more time")
    # pictures
    multi_scale: bool = _told(True, "another input size in every step")
    expanded_scales: bool = _told(True, "eleven sizes around the native one, else eight")
    augment: str = _told("official", "a preset of data/presets.py: official, aerial, industrial, small-data, render, none")
    balance: float = _told(0.0, "repeat pictures of classes that are in fewer than this part of them; 0: off")
    # choosing and stopping
    watch: str = _told("max", "whose AP counts: raw or ema weights, or the better of both")
    evaluate_every: int = _told(1, "epochs between two evaluations; the last one always")
    max_dets: int = _told(100, "detections of each picture that AP counts")
    patience: int = _told(0, "epochs without a gain before stopping; 0: never")
    min_gain: float = _told(0.001, "what counts as a gain of AP")
    max_skipped: int = _told(20, "steps whose loss is not a number, before the run stops")

    def __post_init__(self) -> None:
        for name in ("size_hw", "class_weights"):
            if getattr(self, name) not in (None, "auto"):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.class_weights not in (None, "auto") and not all(
            isinstance(w, int | float) and 0 <= w < math.inf for w in self.class_weights
        ):
            raise ConfigError(f"class_weights are {self.class_weights}; expected numbers of at least 0, or auto")
        if isinstance(self.size_hw, tuple) and len(self.size_hw) != 2:
            raise ConfigError(f"size_hw is {self.size_hw}; expected (height, width)")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(choices)}")
        for name, (least, most) in _BOUNDS.items():
            value, whole = getattr(self, name), name in _WHOLE
            if value is not None and not (isinstance(value, int if whole else int | float) and least <= value <= most):
                raise ConfigError(f"{name} is {value!r}; expected {'a whole number, ' if whole else ''}{least:g} to {most:g}")

    def to_dict(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Recipe:
        """Inverse of `to_dict`; fields that are left out get their defaults, unknown ones are refused."""
        known = [f.name for f in fields(cls)]
        unknown = sorted(set(record) - set(known))
        if unknown:
            raise ConfigError(f"unknown training options {', '.join(unknown)}; there are {', '.join(known)}")
        if record.get("version", VERSION) != VERSION:
            raise ConfigError(f"recipe version is {record['version']}; this release trains version {VERSION}")
        return cls(**record)


_CHOICES = {
    "rates": ("layered", "uniform"),
    "schedule": ("step", "cosine"),
    "ema_warmup": ("official", "ratio"),
    "precision": ("auto", "float32", "bfloat16", "float16"),
    "watch": ("raw", "ema", "max"),
}
_WHOLE = {f.name for f in fields(Recipe) if str(f.type).startswith("int")}
_BOUNDS = {
    "seed": (0, 2**31), "ce": (0, 1e6), "bbox": (0, 1e6), "giou": (0, 1e6), "mask_ce": (0, 1e6), "mask_dice": (0, 1e6),
    "groups": (1, 1000), "epochs": (1, 1e6), "batch_size": (1, 1e6), "accumulate": (1, 1e6), "lr": (0, 1e3), "lr_encoder": (0, 1e3),
    "layer_decay": (0, 1), "component_decay": (0, 1), "weight_decay": (0, 1e3), "clip": (0, 1e9), "drop_path": (0, 0.9),
    "warmup_epochs": (0, 1e6), "lr_drop": (0, 1e9), "min_factor": (0, 1), "ema_decay": (0, 1), "ema_tau": (0, 1e9), "balance": (0, 1),
    "evaluate_every": (1, 1e6), "max_dets": (10, 10_000), "patience": (0, 1e6), "min_gain": (0, 1), "max_skipped": (0, 1e9),
}  # fmt: skip


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`field old -> new` for everything in which two records differ."""
    names = [*new, *(name for name in old if name not in new)]
    return [f"{n} {old.get(n)!r} -> {new.get(n)!r}" for n in names if old.get(n) != new.get(n)]
