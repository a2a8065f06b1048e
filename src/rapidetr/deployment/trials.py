"""optimize.json: what was tried on a detector, what became of each, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from rapidetr.core.errors import ConfigError
from rapidetr.core.reports import Strict
from rapidetr.core.statistics import Interval
from rapidetr.deployment.verdict import Verdict

SCHEMA = "rapidetr.optimize/1"
OUTCOMES = ("adopted", "accepted", "refused", "not tried", "failed")
HEADS = ("technique", "outcome", "p50 ratio", "interval", "AP", "agreement", "MB", "why")


@dataclass(frozen=True)
class Trial(Strict):
    """One technique. What was not measured is None."""

    technique: str
    outcome: str  # of OUTCOMES; "accepted" could be promoted, but another was faster
    reason: str
    id: str | None = None  # in the registry; of what was accepted
    p50_ratio: float | None = None  # candidate against baseline, interleaved; below 1 is faster
    p50_interval: Interval | None = None  # 95 %
    ap: float | None = None  # of boxes, 0..1
    agreement: float | None = None  # part of detections that have a partner in the baseline's, 0..1
    bytes: int | None = None  # of the artifact's files
    make_s: float | None = None  # seconds to make and load it, compiling included
    cold_start_s: float | None = None
    memory_mb: float | None = None

    def __post_init__(self) -> None:
        if self.outcome not in OUTCOMES:
            raise ConfigError(f"outcome is {self.outcome!r}; expected one of {', '.join(OUTCOMES)}")

    @classmethod
    def of(cls, technique: str, verdict: Verdict, *, id: str | None, bytes: int, make_s: float) -> Self:
        """What a verdict says of a candidate, in one line."""
        found = verdict.candidate
        p50 = next((d for d in found["latency"] if d["percentile"] == 50), None)
        gain = next((check.told for check in verdict.checks if check.name == "gain"), "")
        return cls(
            technique,
            "accepted" if verdict.accepted else "refused",
            gain if verdict.accepted else "; ".join(verdict.reasons),
            id,
            p50_ratio=p50 and p50["ratio"],
            p50_interval=p50 and tuple(p50["interval"]),
            ap=found["ap"].get("boxes", {}).get("AP"),
            agreement=found["agreement"] and found["agreement"]["matched_fraction"],
            bytes=bytes,
            make_s=round(make_s, 3),
            cold_start_s=found["cold_start_s"],
            memory_mb=found["memory_mb"],
        )

    def cells(self) -> tuple[str, ...]:
        """A row of a table, as HEADS."""
        interval = "-" if self.p50_interval is None else "{:.3f} to {:.3f}".format(*self.p50_interval)
        size = None if self.bytes is None else self.bytes / 1e6
        numbers = (_number(self.ap, 3), _number(self.agreement, 3), _number(size, 1))
        return (self.technique, self.outcome, _number(self.p50_ratio, 3), interval, *numbers, self.reason)


@dataclass(frozen=True)
class Optimization(Strict):
    """The last run of `optimize` on a registry."""

    baseline: str  # ids in the registry
    adopted: str | None
    judged_on: str
    limits: dict[str, Any]
    trials: tuple[Trial, ...]
    environment: dict[str, Any]
    created: str  # ISO 8601, UTC
    schema: str = SCHEMA

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ConfigError(f"schema is {self.schema!r}; this release reads {SCHEMA!r}")

    @classmethod
    def restored(cls, name: str, value: Any) -> Any:
        return tuple(map(Trial.from_dict, value)) if name == "trials" else super().restored(name, value)

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        return HEADS, [trial.cells() for trial in self.trials]


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
