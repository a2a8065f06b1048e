"""What decides the results of a job, and the model that it means."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapidetr.core.errors import ConfigError
from rapidetr.core.reports import Strict
from rapidetr.runtime.artifact import open_artifact
from rapidetr.runtime.load import load
from rapidetr.runtime.lock import sha256_of, weights_file
from rapidetr.runtime.places import MANIFEST, find_artifact

if TYPE_CHECKING:
    from rapidetr.core.config import ModelConfig
    from rapidetr.core.labels import LabelSpace

LOADING = ("variant", "dtype", "size_hw", "decoder_layers", "queries")
KEEPING = ("threshold", "classes", "max_detections", "nms", "tile", "overlap")


@dataclass(frozen=True)
class Recipe(Strict):
    """All that results depend on; a job goes on only under the recipe it was started with. Sizes are (height, width)."""

    sources: tuple[str, ...]
    model_sha256: str
    format: str = "jsonl"
    shard_size: int = 256  # pictures
    column: str | None = None
    limit: int | None = None
    variant: str | None = None
    dtype: str | None = None
    size_hw: tuple[int, int] | None = None
    decoder_layers: int | None = None
    queries: int | None = None
    threshold: float = 0.5
    classes: tuple[int, ...] | None = None  # indices
    max_detections: int | None = None
    nms: float | None = None
    tile: tuple[int, int] | None = None
    overlap: float = 0.2
    max_pixels: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"threshold is {self.threshold}; expected 0 to 1")

    def loading(self) -> dict[str, Any]:
        """Keywords for `rapidetr.load`."""
        return {"model" if name == "variant" else name: getattr(self, name) for name in LOADING}

    def keeping(self) -> dict[str, Any]:
        """Keywords for `Detector.predict`."""
        return {name: getattr(self, name) for name in KEEPING}

    def differences(self, other: dict[str, Any]) -> list[str]:
        """A line for each field in which `other`, a recipe as JSON, is not this one."""
        mine = self.to_dict()
        names = [f.name for f in fields(self)]
        return [f"{name} {other.get(name)!r}, now {mine[name]!r}" for name in names if other.get(name) != mine[name]]


@dataclass(frozen=True)
class Model:
    """A model that stays the same while a registry moves on: `source` for `rapidetr.load` on any machine that sees the path."""

    source: str
    sha256: str
    config: ModelConfig
    labels: LabelSpace
    license: str


def pin_model(source: str, *, accept_license: str | None = None, **loading: Any) -> Model:
    """What `source` names now. An artifact is verified, anything else is loaded once, on the CPU, so that mistakes show early."""
    if folder := find_artifact(source):
        facts = open_artifact(folder).manifest.facts()
        return Model(os.path.abspath(folder), sha256_of_model(source), facts.config, facts.labels, facts.license)
    detector = load(source, device="cpu", accept_license=accept_license, **loading)
    weights = weights_file(source)
    name = os.path.abspath(source) if Path(source).exists() and weights.is_relative_to(source) else source
    return Model(name, sha256_of_model(source), detector.config, detector.labels, detector.license)


def sha256_of_model(source: str) -> str:
    """What tells models apart: the sha256 of an artifact's manifest, else of the weights."""
    folder = find_artifact(source)
    return sha256_of(folder / MANIFEST if folder else weights_file(source))
