"""What a network is: one frozen record, and the table of the published family.

The record has no defaults on purpose: it travels inside every checkpoint, and a field that was forgotten there should be
an error, not a guess. How it is trained, run or drawn is none of its business.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from rapidetr.core.errors import ConfigError, NotSupportedYet

LEVEL_SCALES = {"P3": 2.0, "P4": 1.0, "P5": 0.5, "P6": 0.25}


@dataclass(frozen=True)
class ModelConfig:
    """Shape of one RF-DETR network. Lengths are in pixels of the network input or in channels; sizes are height x width."""

    name: str  # a row of the table below, or a name of the user's
    size_hw: tuple[int, int]  # the input size it was made for; running at another one is allowed
    patch_size: int
    windows: int  # windows per side of the picture; blocks outside `global_blocks` attend inside one window
    position_grid: int  # side of the stored grid of position embeddings
    vit_width: int
    vit_depth: int
    vit_heads: int
    vit_mlp: int
    registers: int  # register tokens of the encoder, 0 or 4
    stages: tuple[int, ...]  # features are taken after this many blocks
    levels: tuple[str, ...]  # feature pyramid of the decoder, of P3 P4 P5 P6
    projector_eps: float  # layer norms inside the projector: 1e-6 officially, 1e-5 in the Hugging Face port
    width: int  # channels of the decoder
    self_heads: int
    cross_heads: int
    points: int  # sampling points per head and level
    decoder_layers: int
    decoder_ffn: int
    queries: int  # per group
    groups: int  # query groups in training; inference uses the first
    class_rows: int  # outputs of the class head; the LabelSpace says which of them have names
    box_reparam: bool  # boxes refined by scale and shift (all published files) or in logit space
    lite_refine: bool  # reference boxes stay fixed over the decoder layers
    segmentation: bool
    mask_stride: int  # masks are predicted at 1/mask_stride of the input
    in_channels: int

    def __post_init__(self) -> None:
        for name in ("size_hw", "stages", "levels"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for f in fields(self):
            value, least = getattr(self, f.name), 0 if f.name == "registers" else 1
            if f.type == "int" and not (isinstance(value, int) and least <= value <= 1_000_000):
                raise ConfigError(f"{f.name} is {value!r}; expected a whole number from {least} to 1000000")
        if not 0 < self.projector_eps < 1:
            raise ConfigError(f"projector_eps is {self.projector_eps}; expected a small number above 0")
        if len(self.size_hw) != 2 or min(self.size_hw) < self.divisor:
            raise ConfigError(f"size_hw is {self.size_hw}; expected (height, width), each at least {self.divisor}")
        check_size(self.size_hw, self.patch_size, self.windows)
        if not self.stages or list(self.stages) != sorted(set(self.stages)) or not 1 <= self.stages[0] <= self.stages[-1] <= self.vit_depth:
            raise ConfigError(f"stages are {self.stages}; expected rising block counts from 1 to {self.vit_depth}")
        if (
            not self.levels
            or any(level not in LEVEL_SCALES for level in self.levels)
            or self.levels[0] == "P6"
            or len(set(self.levels)) < len(self.levels)
        ):
            raise ConfigError(f"levels are {self.levels}; expected some of {', '.join(LEVEL_SCALES)}, each once, P6 not first")
        for whole, part in (("vit_width", "vit_heads"), ("width", "self_heads"), ("width", "cross_heads")):
            if getattr(self, whole) % getattr(self, part):
                raise ConfigError(f"{whole} {getattr(self, whole)} is not a multiple of {part} {getattr(self, part)}")
        if self.width % 4:
            raise ConfigError(f"width is {self.width}; expected a multiple of 4 (the sine embedding needs it)")

    @property
    def divisor(self) -> int:
        """Height and width of the input must be multiples of this many pixels."""
        return self.patch_size * self.windows

    @property
    def global_blocks(self) -> tuple[int, ...]:
        """0-based blocks that attend over the whole picture (taken stage numbers that are block numbers, too)."""
        return tuple(i for i in range(self.vit_depth) if i in self.stages or i > self.stages[-1])

    @property
    def task(self) -> str:
        return "segment" if self.segmentation else "detect"

    def at(self, *, size_hw: tuple[int, int] | None = None, class_rows: int | None = None) -> ModelConfig:
        """The same network with another native size or another class head."""
        return replace(self, size_hw=size_hw or self.size_hw, class_rows=class_rows or self.class_rows)

    def to_dict(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> ModelConfig:
        """Inverse of `to_dict`; raises ConfigError on unknown, missing or mistyped fields."""
        known = {f.name: f.type for f in fields(cls)}
        if not isinstance(record, dict) or set(record) != set(known):
            got = set(record) if isinstance(record, dict) else set()
            raise ConfigError(f"model configuration: missing {sorted(set(known) - got)}, unknown {sorted(map(str, got - set(known)))}")
        for name, kind in known.items():
            value = record[name]
            items = value if kind.startswith("tuple") and isinstance(value, list | tuple) else [value]
            want: tuple[type, ...] = (str,) if "str" in kind else (bool,) if kind == "bool" else (int, float) if kind == "float" else (int,)
            if (kind.startswith("tuple") and not isinstance(value, list | tuple)) or any(
                not isinstance(v, want) or (isinstance(v, bool) and bool not in want) for v in items
            ):
                raise ConfigError(f"model configuration: {name} is {value!r}; expected {kind}")
        return cls(**record)


def check_size(size_hw: tuple[int, int], patch_size: int, windows: int) -> None:
    """Raise ConfigError unless height and width are multiples of patch x windows; names the nearest sizes that are."""
    step = patch_size * windows
    for side, value in zip(("height", "width"), size_hw, strict=True):
        if value % step or value < step:
            low, high = max(value // step, 1) * step, (value // step + 1) * step
            nearest = f"{low} or {high}" if low < high else f"{low}"
            raise ConfigError(f"image {side} {value} is not a multiple of {step} (patch {patch_size} x {windows} windows); use {nearest}")


_COMMON: dict[str, Any] = {
    "patch_size": 16, "windows": 2, "vit_width": 384, "vit_depth": 12, "vit_heads": 6, "vit_mlp": 1536, "registers": 0,
    "stages": (3, 6, 9, 12), "levels": ("P4",), "projector_eps": 1e-6, "width": 256, "self_heads": 8, "cross_heads": 16,
    "points": 2, "decoder_ffn": 2048, "queries": 300, "groups": 13, "class_rows": 91, "box_reparam": True,
    "lite_refine": True, "segmentation": False, "mask_stride": 4, "in_channels": 3,
}  # fmt: skip
_SEGMENT: dict[str, Any] = {"patch_size": 12, "segmentation": True}
_BIG: dict[str, Any] = {"vit_width": 768, "vit_heads": 12, "vit_mlp": 3072}
_XL: dict[str, Any] = {**_BIG, "patch_size": 20, "width": 512, "self_heads": 16, "cross_heads": 32, "points": 4, "class_rows": 366}
_PICO: dict[str, Any] = {
    "vit_width": 192, "vit_depth": 6, "vit_mlp": 768, "stages": (1, 3, 5, 6), "width": 128, "self_heads": 4, "cross_heads": 8,
    "decoder_ffn": 512, "queries": 50, "groups": 5, "class_rows": 9,
}  # fmt: skip
_2025: dict[str, Any] = {"patch_size": 14, "windows": 4, "stages": (2, 5, 8, 11)}


def _variant(name: str, side: int, position_grid: int, decoder_layers: int, **other: Any) -> ModelConfig:
    record = {**_COMMON, **other}
    return ModelConfig(name=name, size_hw=(side, side), position_grid=position_grid, decoder_layers=decoder_layers, **record)


# fmt: off
VARIANTS: dict[str, ModelConfig] = {v.name: v for v in (
    #         name               side grid layers
    _variant("pico",              288, 18, 2, **_PICO),
    _variant("nano",              384, 24, 2),
    _variant("small",             512, 32, 3),
    _variant("medium",            576, 36, 4),
    _variant("base",              560, 37, 3, **_2025),
    _variant("large",             704, 44, 4),
    _variant("large-deprecated",  560, 37, 3, **_2025, **_BIG, width=384, self_heads=12, cross_heads=24, points=4, levels=("P3", "P5")),
    _variant("xlarge",            700, 35, 5, **_XL, windows=1),
    _variant("2xlarge",           880, 44, 5, **_XL),
    _variant("seg-pico",          288, 18, 2, **_PICO, segmentation=True),
    _variant("seg-preview",       432, 36, 4, **_SEGMENT, queries=200),
    _variant("seg-nano",          312, 26, 4, **_SEGMENT, queries=100, windows=1),
    _variant("seg-small",         384, 32, 4, **_SEGMENT, queries=100),
    _variant("seg-medium",        432, 36, 5, **_SEGMENT, queries=200),
    _variant("seg-large",         504, 42, 5, **_SEGMENT, queries=200),
    _variant("seg-xlarge",        624, 52, 6, **_SEGMENT),
    _variant("seg-2xlarge",       768, 64, 6, **_SEGMENT),
)}
# fmt: on


def variant(name: str) -> ModelConfig:
    """The row of the table called `name`; ConfigError lists the names there are."""
    key = str(name).lower().removeprefix("rf-detr-").removeprefix("rfdetr-")
    if key.startswith("keypoint"):
        raise NotSupportedYet("the keypoint preview is not supported yet; use a detection or segmentation variant")
    if key not in VARIANTS:
        raise ConfigError(f"unknown model {name!r}; available: {', '.join(VARIANTS)}")
    return VARIANTS[key]


def list_models(task: str | None = None) -> list[str]:
    """Names for `rapidetr.load`, smallest first; `task` is detect or segment."""
    if task not in (None, "detect", "segment"):
        raise ConfigError(f"task is {task!r}; expected detect or segment")
    return [name for name, config in VARIANTS.items() if task in (None, config.task)]
