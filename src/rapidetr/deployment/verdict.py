"""Whether a candidate may take the place of a baseline: figures of both, limits, and a judgement with its reasons. No measuring."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from rapidetr.bench.compare import Difference
from rapidetr.core.errors import ConfigError
from rapidetr.core.reports import Strict
from rapidetr.core.statistics import LEAST_EFFECT
from rapidetr.core.statistics import verdict as tell

SCHEMA = "rapidetr.verdict/1"
LEAST_AP = 0.05  # of a baseline; below it hardly anything is found, and nothing can be lost
LEAST_AGREEMENT = 0.95  # where agreement decides and no limit is given
CLASS_FACTOR = 10  # one class has few pictures, so its AP is coarser
ROUNDING = 1e-9  # 0.413 - 0.410 is a little more than 0.003


@dataclass(frozen=True)
class Limits(Strict):
    """What a candidate must keep. AP is 0..1; the last three are those of a service level."""

    max_ap_drop: float = 0.003  # overall, of boxes and of masks
    max_class_drop: float | None = None  # of any one class; None: CLASS_FACTOR * max_ap_drop
    min_agreement: float | None = None  # None: LEAST_AGREEMENT where AP cannot show accuracy; 0 waives accuracy there
    least_gain: float = 0.02  # part of the p50 that must be saved, with certainty
    p95_ms: float | None = None
    min_ap: float | None = None  # of boxes
    memory_mb: float | None = None  # peak of a fresh process

    def __post_init__(self) -> None:
        for name in ("max_ap_drop", "max_class_drop", "min_agreement", "least_gain", "min_ap"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"{name} is {value}; expected 0 to 1")


@dataclass(frozen=True)
class Evidence(Strict):
    """What was measured of one side; what compares the two is with the candidate."""

    name: str
    finite: bool  # whether all outputs were
    ap: dict[str, Any]  # "boxes", "masks" -> {"AP": 0..1 or None, "classes": {name: the same}}; empty without annotations
    agreement: dict[str, Any] | None = None  # evaluation/agreement.py, "masks_matched_fraction" (None for boxes only), "threshold"
    latency: tuple[Difference, ...] = ()  # candidate against baseline, interleaved, by percentile
    memory_mb: float | None = None
    cold_start_s: float | None = None  # from starting a fresh process to its first detections
    problems: tuple[str, ...] = ()  # why the times cannot be used
    notes: tuple[str, ...] = ()

    @classmethod
    def restored(cls, name: str, value: Any) -> Any:
        return tuple(map(Difference.from_dict, value)) if name == "latency" else super().restored(name, value)

    def ap_of(self, kind: str) -> float | None:
        return self.ap.get(kind, {}).get("AP")


@dataclass(frozen=True)
class Check(Strict):
    """One limit: whether it is kept, and what was found."""

    name: str
    kept: bool
    told: str


@dataclass(frozen=True)
class Verdict(Strict):
    """verdict.json. `limits`, `baseline` and `candidate` are the records that were judged, so that it can be judged again."""

    accepted: bool
    accuracy: str  # what showed it: "AP", "agreement", or "waived"
    checks: tuple[Check, ...]
    notes: tuple[str, ...]
    limits: dict[str, Any]
    baseline: dict[str, Any]
    candidate: dict[str, Any]
    schema: str = SCHEMA

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ConfigError(f"schema is {self.schema!r}; this release reads {SCHEMA!r}")

    @classmethod
    def restored(cls, name: str, value: Any) -> Any:
        return tuple(map(Check.from_dict, value)) if name == "checks" else super().restored(name, value)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it was refused, or everything that was kept."""
        return tuple(check.told for check in self.checks if check.kept == self.accepted)

    def to_text(self) -> str:
        lines = [f"{'accepted' if self.accepted else 'REFUSED'}: {self.candidate['name']} against {self.baseline['name']}"]
        lines += [f"  {'kept' if check.kept else 'NOT kept'}: {check.told}" for check in self.checks]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """The verdict in a file; ConfigError names the file."""
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (ValueError, OSError) as problem:
            raise ConfigError(f"{path}: expected a verdict of the gate ({problem})") from None

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1) + "\n"

    def write(self, path: str | Path) -> Path:
        """The file, whole or not at all."""
        part = Path(path).with_name(f".{Path(path).name}.{os.getpid()}.part")
        part.write_text(self.to_json(), encoding="utf-8")
        os.replace(part, path)
        return Path(path)


def judge(baseline: Evidence, candidate: Evidence, limits: Limits) -> Verdict:
    """Accepted if every limit is kept. What was not measured is not kept. Looks at nothing but its arguments."""
    checks = [
        Check("finite", e.finite, f"outputs of {e.name} are {'all' if e.finite else 'NOT all'} finite") for e in (baseline, candidate)
    ]
    kinds = ["boxes", "masks"] if candidate.agreement and candidate.agreement["masks_matched_fraction"] is not None else ["boxes"]
    shown = [kind for kind in kinds if (baseline.ap_of(kind) or 0) >= LEAST_AP]
    checks += [check for kind in shown for check in _ap(kind, baseline, candidate, limits)]
    asked = limits.min_agreement
    least = LEAST_AGREEMENT if asked is None else asked
    agreeing = [kind for kind in kinds if least and (kind not in shown or asked is not None)]
    checks += [_agreement(kind, candidate, least) for kind in agreeing]
    checks += [*_speed(candidate, limits), *_service_level(candidate, limits)]
    hidden = [kind for kind in kinds if kind not in shown]
    notes = [*(_why_hidden(kind, baseline, least) for kind in hidden), *baseline.notes, *candidate.notes]
    return Verdict(
        accepted=all(check.kept for check in checks),
        accuracy="AP" if not hidden else "agreement" if least else "waived",
        checks=tuple(checks),
        notes=tuple(dict.fromkeys(notes)),
        limits=limits.to_dict(),
        baseline=baseline.to_dict(),
        candidate=candidate.to_dict(),
    )


def _why_hidden(kind: str, baseline: Evidence, least: float) -> str:
    ap = baseline.ap_of(kind)
    why = f"there are no annotations of {kind}" if ap is None else f"the baseline's AP of {kind} is {ap:.3f}, under {LEAST_AP}"
    return f"{why}, so AP cannot show accuracy: {'agreement decides' if least else 'accuracy was waived (minimum agreement 0)'}"


def _ap(kind: str, baseline: Evidence, candidate: Evidence, limits: Limits) -> Iterator[Check]:
    def compare(name: str, was: float, now: float | None, most: float) -> Check:
        drop = was - (now or 0.0)
        told = f"{name} {now or 0.0:.4f} against {was:.4f}, {abs(drop):.4f} {'less' if drop > 0 else 'more'} (at most {most:g} less)"
        return Check(f"ap {kind}", drop <= most + ROUNDING, told)

    before, after = baseline.ap[kind], candidate.ap.get(kind, {})
    yield compare(f"AP of {kind}", before["AP"], after.get("AP"), limits.max_ap_drop)
    classes = {name: (was, after.get("classes", {}).get(name)) for name, was in before["classes"].items() if was is not None}
    if classes:
        worst = max(classes, key=lambda name: classes[name][0] - (classes[name][1] or 0.0))
        most = CLASS_FACTOR * limits.max_ap_drop if limits.max_class_drop is None else limits.max_class_drop
        yield compare(f"AP of {kind} of the worst class, {worst!r},", *classes[worst], most)


def _agreement(kind: str, candidate: Evidence, least: float) -> Check:
    found = candidate.agreement
    if found is None or not found["first"]:
        return Check(f"agreement {kind}", False, "agreement is unknown: the baseline found nothing, or there were no pictures")
    fraction = found["matched_fraction" if kind == "boxes" else "masks_matched_fraction"]
    shifts = f"scores move by {found['score_shift_p95']:.3f}, boxes by {found['box_shift_px_p95']:.2f} px (p95)"
    told = f"{100 * fraction:.2f}% of {kind} agree (at least {100 * least:g}%) in {found['images']} pictures; {shifts}"
    return Check(f"agreement {kind}", fraction >= least - ROUNDING, told)


def _speed(candidate: Evidence, limits: Limits) -> Iterator[Check]:
    for problem in candidate.problems:
        yield Check("quiet machine", False, f"times cannot be judged: {problem}")
    if not any(d.percentile == 50 for d in candidate.latency):
        yield Check("gain", False, "it was not timed")
    for d in candidate.latency:
        if d.percentile == 50:
            gains = tell(d.interval, least_effect=limits.least_gain) == "faster"
            yield Check("gain", gains, f"{'gain' if gains else 'no measurable gain'} (at least {limits.least_gain:.0%} asked): {d}")
        else:
            slower = tell(d.interval, least_effect=LEAST_EFFECT) == "slower"
            yield Check(f"p{d.percentile}", not slower, f"{'slower' if slower else 'not slower'}: {d}")


def _service_level(candidate: Evidence, limits: Limits) -> Iterator[Check]:
    p95 = next((d.ours_ms for d in candidate.latency if d.percentile == 95), None)
    for name, unit, value, most in (("p95", "ms", p95, limits.p95_ms), ("memory", "MB", candidate.memory_mb, limits.memory_mb)):
        if most is not None:
            found = "unknown" if value is None else f"{value:.1f} {unit}"
            yield Check(f"service level {name}", value is not None and value <= most, f"{name} is {found} (at most {most:g} {unit})")
    if limits.min_ap is not None:
        ap = candidate.ap_of("boxes")
        told = f"AP of boxes is {'unknown' if ap is None else f'{ap:.4f}'} (at least {limits.min_ap:g})"
        yield Check("service level AP", ap is not None and ap >= limits.min_ap, told)
