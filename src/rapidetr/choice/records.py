"""What can be chosen, what was measured of it, and what is asked for; all of it goes to JSON and back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

from rapidetr.core.errors import ConfigError, ServiceLevelUnmet

EFFORTS = ("none", "screen", "time", "full")  # nothing, a first look, p95 and memory for good, AP for good as well


class Record:
    """Frozen dataclasses that JSON carries; tuples travel as lists."""

    what: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)  # type: ignore[call-overload]  # every child is a dataclass

    def restore(self, **kinds: Any) -> None:
        """Turn what JSON made of these fields into their own kind again: a record, or a tuple of records."""
        for name, kind in kinds.items():
            value = getattr(self, name)
            if isinstance(value, dict):
                object.__setattr__(self, name, kind.from_dict(value))
            elif isinstance(value, list):
                object.__setattr__(self, name, tuple(kind.from_dict(v) if isinstance(v, dict) else v for v in value))

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`; ConfigError where fields are missing, unknown or of another kind."""
        names = {f.name for f in fields(cls)}  # type: ignore[arg-type]
        if not isinstance(record, Mapping) or set(record) != names:
            got = set(record) if isinstance(record, Mapping) else set()
            raise ConfigError(f"{cls.what}: missing {sorted(names - got)}, unknown {sorted(map(str, got - names))}")
        try:
            return cls(**record)
        except (TypeError, ValueError, AttributeError) as problem:
            raise ConfigError(f"{cls.what}: {problem}") from None


@dataclass(frozen=True)
class ServiceLevel(Record):
    """The promise: p95 latency of one picture in ms at most, AP (0..1) at least, peak memory in MB (10^6 bytes) at most."""

    what: ClassVar[str] = "service level"
    p95_ms: float
    min_ap: float | None = None
    memory_mb: float | None = None

    def __post_init__(self) -> None:
        for name, most in (("p95_ms", math.inf), ("min_ap", 1.0), ("memory_mb", math.inf)):
            value = getattr(self, name)
            if value is None and name != "p95_ms":
                continue
            if not isinstance(value, int | float) or not 0 <= value <= most or value == math.inf or (value == 0 and name != "min_ap"):
                raise ConfigError(f"{name} is {value!r}; expected {'0 to 1' if name == 'min_ap' else 'a number above 0'}")

    def __str__(self) -> str:
        ap = "" if self.min_ap is None else f", AP at least {self.min_ap:g}"
        return f"p95 at most {self.p95_ms:g} ms{ap}" + ("" if self.memory_mb is None else f", memory at most {self.memory_mb:g} MB")


@dataclass(frozen=True)
class Candidate(Record):
    """One configuration. `model` is whatever `rapidetr.load` takes: a name, a checkpoint file, a run folder, an artifact."""

    what: ClassVar[str] = "candidate"
    model: str
    size_hw: tuple[int, int]
    decoder_layers: int
    queries: int
    engine: str = "torch"
    precision: str = "float32"

    def __post_init__(self) -> None:
        self.restore(size_hw=tuple)

    def __str__(self) -> str:
        layers = f"{self.decoder_layers} layer{'s' * (self.decoder_layers > 1)}"
        return f"{self.model} {self.size_hw[0]}x{self.size_hw[1]}, {layers}, {self.queries} queries, {self.engine} {self.precision}"

    @property
    def family(self) -> tuple[str, str, str]:
        """What candidates share whose work can be compared number by number."""
        return self.model, self.engine, self.precision

    @property
    def extent(self) -> tuple[int, int, int, int]:
        """Height, width, decoder layers, queries: more of any of them is more work."""
        return *self.size_hw, self.decoder_layers, self.queries


@dataclass(frozen=True)
class Measured(Record):
    """What is known of one candidate. None stands for "not measured".

    `p95_interval_ms` is a 95 % confidence interval. From too few runs for a p95 it is (lower end of p50, None), for p95 is
    at least p50. `ap` of a screening is that of a part of the pictures; AP of all of them lies within `ap_margin` of it.
    `gmacs` as core/work.py counts them. `problem` says why a candidate is refused whatever its numbers.
    """

    what: ClassVar[str] = "measurement"
    candidate: Candidate
    effort: str = "full"
    p50_ms: float | None = None
    p95_ms: float | None = None
    p95_interval_ms: tuple[float, float | None] | None = None
    ap: float | None = None
    ap_margin: float = 0.0
    memory_mb: float | None = None
    gmacs: float | None = None
    seconds: float = 0.0  # that measuring took
    problem: str | None = None
    source: str = ""  # the report that says so
    artifact_sha256: str | None = None
    dataset_sha256: str | None = None

    def __post_init__(self) -> None:
        self.restore(candidate=Candidate, p95_interval_ms=tuple)
        if self.effort not in EFFORTS:
            raise ConfigError(f"effort is {self.effort!r}; expected one of {', '.join(EFFORTS)}")
        for name in ("p50_ms", "p95_ms", "ap", "ap_margin", "memory_mb", "gmacs", "seconds"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int | float) or not 0 <= value < math.inf):
                raise ConfigError(f"{self.candidate}: {name} is {value!r}; expected a number of at least 0")
        if self.p95_interval_ms is not None:
            low, high = self.p95_interval_ms
            if not 0 <= low < math.inf or (high is None) != (self.p95_ms is None) or not low <= (self.p95_ms or low) <= (high or low):
                raise ConfigError(f"{self.candidate}: p95 {self.p95_ms} ms has the interval {low} to {high}; expected one around it")


SCHEMA = "rapidetr.service-level/1"


@dataclass(frozen=True)
class Promise(Record):
    """service_level.json: the limits, and the configuration that keeps them. `complete` is False where others might still
    win. `environment` and hashes say for which machine, artifact and dataset the figures hold.
    """

    what: ClassVar[str] = "service_level.json"
    limits: ServiceLevel
    chosen: Measured | None
    most_accurate: Measured | None
    complete: bool
    environment: dict[str, Any]
    schema: str = SCHEMA

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ConfigError(f"schema is {self.schema!r}; expected {SCHEMA!r}, write the file again with `rapidetr choose`")
        self.restore(limits=ServiceLevel, chosen=Measured, most_accurate=Measured)


def read_promise(path: str | Path) -> tuple[Promise, Measured]:
    """What service_level.json says, and the chosen configuration; ServiceLevelUnmet where it names none."""
    try:
        promise = Promise.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
    except (ValueError, OSError) as problem:
        raise ConfigError(f"{path}: not a service_level.json of `rapidetr choose` ({problem})") from None
    if promise.chosen is None:
        raise ServiceLevelUnmet(f"{path}: no configuration keeps {promise.limits}; relax a limit or offer others to `rapidetr choose`")
    return promise, promise.chosen
