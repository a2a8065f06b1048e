"""How to feed a model: a record that travels with its weights, so that nobody has to remember it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from rapidetr.core.errors import ConfigError

FILTERS = ("bilinear", "bilinear-antialias")


@dataclass(frozen=True)
class Preprocessing:
    """RGB picture -> network input: stretch to the input size, divide by 255, normalise per channel.

    `bilinear` samples four neighbours of the float picture, as the official `predict` does; `bilinear-antialias` is
    Pillow's filter on the uint8 picture, as official training and evaluation do. Published AP was measured with the
    second, so a model knows two filters: one for `predict`, one for evaluation.
    """

    predict_filter: str = "bilinear-antialias"
    evaluate_filter: str = "bilinear-antialias"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        for name in ("predict_filter", "evaluate_filter"):
            if getattr(self, name) not in FILTERS:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(FILTERS)}")
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(float(v) for v in getattr(self, name)))
        if (
            len(self.mean) != len(self.std)
            or not self.mean
            or not all(0 < s < math.inf for s in self.std)
            or not all(map(math.isfinite, self.mean))
        ):
            raise ConfigError(f"mean {self.mean} and std {self.std} must be finite and equally long, std above 0")

    @classmethod
    def official(cls) -> Preprocessing:
        """What official files were published with."""
        return cls(predict_filter="bilinear", evaluate_filter="bilinear-antialias")

    def to_dict(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Preprocessing:
        try:
            return cls(record["predict_filter"], record["evaluate_filter"], tuple(record["mean"]), tuple(record["std"]))
        except (KeyError, TypeError, ValueError) as problem:
            raise ConfigError(f"preprocessing: expected predict_filter, evaluate_filter, mean and std ({problem})") from None
