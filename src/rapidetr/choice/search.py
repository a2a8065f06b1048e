"""What to measure next: a cheap look at everything that may fit, then full measurements of what can still win.

What is used to save time, and why it is safe:
- p95 is at least p50: a screening whose p50 is over the limit for certain needs no full measurement;
- more pixels, layers or queries of the same model, engine and precision are not faster: what is at least as much work as
  something over the limit by more than SLACK is not even screened;
- AP of a part of the pictures lies within a margin of AP of all. All candidates see the same part, so most of its error is
  common: once some candidates have both, what they show of the difference narrows the margin of the others.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

from rapidetr.choice.rank import Answer, misses, rank, size_order
from rapidetr.choice.records import Candidate, Measured, ServiceLevel
from rapidetr.core.config import ModelConfig, check_size
from rapidetr.core.errors import ConfigError

SLACK = 0.05
FREEDOM = 3  # pairs of screening and full AP beyond the first of each model, before they are believed
NARROWEST = 1 / 8  # of its first width: no margin becomes narrower, however well a few pairs agree
DEVIATIONS = 3.0  # standard deviations of what pairs show, which the margin is wide
SCHEMA = "rapidetr.choice-journal/1"

# What can be measured at a time: few calls and AP of some pictures · enough calls for p95, and memory · AP of all pictures.
STEPS = ("screen", "time", "score")
Measure = Callable[[Candidate, str], Measured]
Progress = Callable[[Candidate, str, Answer], None]  # what comes next, and the answer so far


class Offer(Protocol):
    """What an engine can be asked for. One with a fixed graph has its values since its artifact was made."""

    @property
    def name(self) -> str:
        """Such as "torch"."""

    @property
    def precisions(self) -> tuple[str, ...]:
        """Such as ("float32",)."""

    def stored(self, model: str) -> tuple[tuple[int, int], int, int] | None:
        """(size_hw, decoder layers, queries) fixed in the artifact of `model`; None where `load` takes any."""


@dataclass(frozen=True)
class AnyGraph:
    """The Offer of an engine that takes any size, number of layers and queries."""

    name: str
    precisions: tuple[str, ...] = ("float32",)

    def stored(self, model: str) -> None:
        """Nothing is."""


@dataclass(frozen=True)
class FixedGraph:
    """The Offer of one artifact or exported file: its engine, its precision, and what is fixed in it."""

    name: str
    precisions: tuple[str, ...]
    values: tuple[tuple[int, int], int, int]

    def stored(self, model: str) -> tuple[tuple[int, int], int, int]:
        return self.values


def grid(
    models: Mapping[str, ModelConfig],
    offers: Iterable[Offer],
    *,
    sizes: Sequence[tuple[int, int]] = (),
    decoder_layers: Sequence[int] | None = (),
    queries: Sequence[int] = (),
) -> list[Candidate]:
    """All configurations, each once, least work first. Nothing given means what the model was made with; layers None: each.

    Layers and queries beyond what a model has count as all it has; ConfigError for a model that no size fits.
    """
    found: dict[Candidate, None] = {}
    for model, config in models.items():
        free = [
            (size, layers, count)
            for size in _fitting(config, sizes)
            for layers in _clipped(range(1, config.decoder_layers + 1) if decoder_layers is None else decoder_layers, config.decoder_layers)
            for count in _clipped(queries, config.queries)
        ]
        for offer in offers:
            stored = offer.stored(model)
            for size, layers, count in free if stored is None else [stored]:
                found |= dict.fromkeys(Candidate(model, size, layers, count, offer.name, p) for p in offer.precisions)
    return sorted(found, key=lambda c: (c.extent, c.family))


def _fitting(config: ModelConfig, sizes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    if not sizes:
        return [config.size_hw]
    fitting, problem = [], None
    for size in sizes:
        try:
            check_size(size, config.patch_size, config.windows)
            fitting.append(size)
        except ConfigError as error:
            problem = error
    if problem and not fitting:
        raise ConfigError(f"{config.name}: no --sizes fit: {problem}")
    return fitting


def _clipped(wanted: Sequence[int], most: int) -> list[int]:
    return sorted({min(w, most) for w in wanted}) or [most]


def search(
    candidates: Sequence[Candidate],
    level: ServiceLevel,
    measure: Measure,
    *,
    journal: Journal | None = None,
    budget_s: float | None = None,
    progress: Progress | None = None,
    environment: dict[str, Any] | None = None,
    notes: Sequence[str] = (),
    now: Callable[[], float] = time.monotonic,
) -> Answer:
    """The answer of `rank` for all candidates, from as few measurements as it takes. ConfigError without candidates.

    With a journal nothing is measured twice, whatever the level; what failed is tried again. No measurement begins after
    `budget_s` seconds: the answer then comes from what there is, and says so.
    """
    if not candidates:
        raise ConfigError("there are no candidates; expected at least one model")
    began, known = now(), _Known(candidates, level, journal.read() if journal else ())
    while True:
        answer = rank(known.rows(), level, environment=environment, notes=notes)
        following = _next(answer)
        if following is None:
            return answer
        if budget_s is not None and now() - began >= budget_s:
            spent = f"stopped after {(now() - began) / 60:.1f} minutes, as the time budget says"
            return rank(known.rows(), level, environment=environment, notes=[*notes, spent])
        if progress:
            progress(*following, answer)
        found = known.merged(measure(*following), following[1])
        known.add(found)
        if journal:
            journal.append(found)


def _next(answer: Answer) -> tuple[Candidate, str] | None:
    """Screen everything first. Then, until nothing is open: the one that looks most accurate of those that may be the most
    accurate, then the smallest, first of those that look accurate enough. Latency before AP, which takes longer."""
    rows = [row.measured for row in answer.of("open")]
    for m in rows:
        if m.effort == "none":
            return m.candidate, "screen"
    if not rows:
        return None
    best = answer.most_accurate
    rivals = [m for m in rows if best is None or m.ap is None or m.ap + m.ap_margin >= (best.ap or 0.0)]
    if rivals:
        chosen = max(rivals, key=lambda m: (m.ap is None, m.ap or 0.0, [-v for v in m.candidate.extent]))
    else:
        chosen = min(rows, key=lambda m: ((m.ap or 0.0) < (answer.level.min_ap or 0.0), size_order(m)))
    return chosen.candidate, "score" if chosen.effort == "time" else "time"


class _Known:
    """What was measured of each candidate, and what follows from it for others."""

    def __init__(self, candidates: Sequence[Candidate], level: ServiceLevel, before: Iterable[Measured]) -> None:
        self.level = level
        self.screens: dict[Candidate, Measured] = {}
        self.best = {c: Measured(c, effort="none") for c in candidates}
        for measured in before:
            if measured.candidate in self.best:
                self.add(measured)

    def add(self, measured: Measured) -> None:
        if measured.effort == "screen":
            self.screens[measured.candidate] = measured
        self.best[measured.candidate] = measured

    def merged(self, found: Measured, step: str) -> Measured:
        """What a step found, with what was known before of the rest."""
        before = self.best[found.candidate]
        seconds = before.seconds + found.seconds
        if step == "screen" or found.problem:
            return replace(found, seconds=seconds)
        if step == "time":
            return replace(found, effort="time", ap=before.ap, ap_margin=before.ap_margin, seconds=seconds)
        return replace(before, effort="full", ap=found.ap, ap_margin=0.0, seconds=seconds)

    def rows(self) -> list[Measured]:
        slow = [m for m in self.best.values() if self._slow(m)]
        return [self._outworked(m, slow) for m in self._calibrated()]

    def _slow(self, m: Measured) -> bool:
        interval = m.p95_interval_ms
        return m.problem is None and interval is not None and interval[0] > self.level.p95_ms * (1 + SLACK)

    def _outworked(self, m: Measured, slow: Sequence[Measured]) -> Measured:
        """Refused without being measured where something with no more work is too slow."""
        if m.effort != "none":
            return m
        for other in slow:
            c, o = m.candidate, other.candidate
            if c.family == o.family and all(a >= b for a, b in zip(c.extent, o.extent, strict=True)):
                (miss,) = [miss for miss in misses(other, self.level) if miss.limit == "p95_ms"]
                return replace(m, problem=f"not measured: at least as much work as {o}, whose {miss.text}")
        return m

    def _calibrated(self) -> list[Measured]:
        """AP of screenings moved by what full measurements show of the difference, with the margin that they leave."""
        shifts: dict[str, list[float]] = {}
        for c, screen in self.screens.items():
            full = self.best[c]
            if full.effort == "full" and full.ap is not None and screen.ap is not None:
                shifts.setdefault(c.model, []).append(full.ap - screen.ap)
        return [_narrowed(m, shifts) if m.effort in ("screen", "time") else m for m in self.best.values()]


def _narrowed(m: Measured, shifts: Mapping[str, Sequence[float]]) -> Measured:
    """By the mean shift of the same model, give or take what shifts scatter around the mean of their model; a model without
    any is moved by the mean of all and keeps half of its margin."""
    freedom = sum(len(own) - 1 for own in shifts.values())
    if m.ap is None or freedom < FREEDOM:
        return m
    own = shifts.get(m.candidate.model, ())
    scatter = sqrt(sum((shift - fmean(group)) ** 2 for group in shifts.values() for shift in group) / freedom)
    margin = DEVIATIONS * scatter * sqrt(1 + 1 / len(own)) if own else m.ap_margin / 2
    shift = fmean(own or [fmean(group) for group in shifts.values()])
    margin = max(margin, NARROWEST * m.ap_margin)
    return m if margin >= m.ap_margin else replace(m, ap=min(max(m.ap + shift, 0.0), 1.0), ap_margin=margin)


class Journal:
    """Every measurement, one line of JSON each, on disk before the next one begins."""

    def __init__(self, path: Path, settings: Mapping[str, Any], artifacts: Mapping[str, str | None] | None = None) -> None:
        """`settings`: what must be equal for measurements to go together. ConfigError names what differs from those of an
        existing file. Measurements of a model whose sha256 in `artifacts` has changed are not read."""
        self.path, self.artifacts = path, artifacts or {}
        head = json.loads(json.dumps({"schema": SCHEMA, **settings}))
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = self._whole_lines()
        if not lines:
            self._write(head)
        elif (found := self._parse(lines[0], 1)) != head:
            names = sorted(k for k in head.keys() | found.keys() if head.get(k) != found.get(k))
            raise ConfigError(f"{path}: holds measurements with other {', '.join(names)}; choose another --out, or remove it")

    def read(self) -> list[Measured]:
        """Measurements without a problem and of the artifacts of today, oldest first; the others are to be made again."""
        records = [self._parse(line, number) for number, line in enumerate(self._whole_lines()[1:], 2)]
        return [
            m
            for m in map(Measured.from_dict, records)
            if m.problem is None and self.artifacts.get(m.candidate.model, m.artifact_sha256) == m.artifact_sha256
        ]

    def append(self, measured: Measured) -> None:
        self._write(measured.to_dict())

    def _whole_lines(self) -> list[str]:
        """A line that was being written when the process ended is cut off."""
        if not self.path.exists():
            return []
        text = self.path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if len(whole) < len(text):
            self.path.write_bytes(whole)
        return whole.decode().splitlines()

    def _parse(self, line: str, number: int) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise ConfigError(f"{self.path} line {number}: expected a JSON object; remove the line or the file")
        return record

    def _write(self, record: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
