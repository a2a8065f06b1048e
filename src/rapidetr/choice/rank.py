"""Measurements and a service level become an answer: the smallest configuration that keeps it, the most accurate one, and for
every other one the reason in one line. Works from JSON alone.

A limit counts as kept when the figure keeps it *and* the whole confidence interval of p95 does. Order, with nothing left to
chance: smaller is fewer multiplications, then less memory, lower p95, higher AP, name; more accurate is higher AP,
then smaller. A candidate without a full measurement is refused only where even its most favourable reading
misses a limit; otherwise it is "open" as long as it could still win.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rapidetr.choice.records import Candidate, Measured, Promise, Record, ServiceLevel
from rapidetr.core.errors import ConfigError

VERDICTS = ("kept", "open", "beaten", "refused")
NEAREST = 3


@dataclass(frozen=True)
class Miss(Record):
    """A limit that is not kept. `short`: by which part of the limit, None where it was not measured. `sure`: no further
    measurement can change that. `needed`: the limit with which it would be kept.
    """

    what = "miss"
    limit: str
    short: float | None
    needed: float | None
    sure: bool
    text: str


@dataclass(frozen=True)
class Row(Record):
    """One candidate, judged. `beaten`: never measured in full, for it cannot win."""

    what = "row"
    measured: Measured
    verdict: str
    reason: str
    misses: tuple[Miss, ...] = ()

    def __post_init__(self) -> None:
        self.restore(measured=Measured, misses=Miss)

    @property
    def distance(self) -> float:
        """Sum of what is missing, as parts of the limits; infinite where something was not measured."""
        return sum((math.inf if m.short is None else m.short for m in self.misses), math.inf if self.measured.problem else 0.0)


@dataclass(frozen=True)
class Answer(Record):
    """`rows`: kept ones by size, then open and beaten ones, then the refused, nearest miss first. `pareto`: nothing is both
    faster (p95) and more accurate. `advice`: what would help, where nothing is kept.
    """

    what = "answer"
    level: ServiceLevel
    rows: tuple[Row, ...]
    smallest: Measured | None
    most_accurate: Measured | None
    pareto: tuple[Candidate, ...]
    advice: tuple[str, ...]
    notes: tuple[str, ...] = ()
    environment: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.restore(level=ServiceLevel, rows=Row, smallest=Measured, most_accurate=Measured, pareto=Candidate, advice=str, notes=str)

    def of(self, verdict: str) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.verdict == verdict)

    @property
    def promise(self) -> Promise:
        """What service_level.json holds."""
        return Promise(self.level, self.smallest, self.most_accurate, not self.of("open"), self.environment)


def rank(
    measured: Iterable[Measured], level: ServiceLevel, *, notes: Sequence[str] = (), environment: dict[str, Any] | None = None
) -> Answer:
    """See above. ConfigError for a candidate that comes twice, and for AP of different datasets."""
    measured = list(measured)
    _check(measured)
    missed = {m.candidate: misses(m, level) for m in measured}
    kept = [m for m in measured if m.effort == "full" and not m.problem and not missed[m.candidate]]
    smallest = min(kept, key=size_order, default=None)
    accurate = [m for m in kept if m.ap is not None]
    most_accurate = min(accurate, key=_accuracy_order, default=None)
    rows = [_judge(m, missed[m.candidate], smallest, most_accurate) for m in measured]
    rows.sort(key=lambda r: (VERDICTS.index(r.verdict), r.distance if r.verdict == "refused" else 0.0, size_order(r.measured)))
    advice = [] if kept else _advise([r for r in rows if r.verdict == "refused"], level)
    found_notes = [*notes, *_open_note(rows)]
    return Answer(level, tuple(rows), smallest, most_accurate, pareto(measured), tuple(advice), tuple(found_notes), environment or {})


def _check(measured: Sequence[Measured]) -> None:
    seen: dict[Candidate, Measured] = {}
    for m in measured:
        if m.candidate in seen:
            raise ConfigError(
                f"{m.candidate} was measured twice ({seen[m.candidate].source or '-'}, {m.source or '-'}); name one report of it"
            )
        seen[m.candidate] = m
    data = sorted({m.dataset_sha256 for m in measured if m.dataset_sha256 and m.ap is not None})
    if len(data) > 1:
        raise ConfigError(f"AP was measured on {len(data)} different datasets ({', '.join(d[:8] for d in data)}); expected one")


def size_order(m: Measured) -> tuple[Any, ...]:
    """Smaller first; see the top. What was not measured counts as worst."""
    worst = (math.inf if v is None else v for v in (m.gmacs, m.memory_mb, m.p95_ms))
    return *worst, -(m.ap or 0.0), str(m.candidate)


def _accuracy_order(m: Measured) -> tuple[Any, ...]:
    return -(m.ap or 0.0), *size_order(m)


def misses(m: Measured, level: ServiceLevel) -> tuple[Miss, ...]:
    """Every limit that `m` does not keep for certain."""
    if m.problem:
        return ()
    return tuple(miss for miss in (_latency(m, level.p95_ms), _accuracy(m, level.min_ap), _memory(m, level.memory_mb)) if miss)


def _latency(m: Measured, limit: float) -> Miss | None:
    timed = m.effort in ("time", "full")
    if m.p95_interval_ms is None:
        what = "p95 was not measured" if m.p95_ms is None else f"p95 {m.p95_ms:.4g} ms has no confidence interval"
        return Miss("p95_ms", None, None, timed, what)
    low, high = m.p95_interval_ms
    if m.p95_ms is None or high is None:
        if low > limit:
            return Miss("p95_ms", low / limit - 1, None, True, f"p95 of at least {_apart(low, limit)} ms is over {limit:g} ms")
        return Miss("p95_ms", None, None, timed, "too few runs for p95")
    if high <= limit:
        return None
    reach = f"{low:.4g} to {_apart(high, limit)}"
    if m.p95_ms > limit:
        text = f"p95 {_apart(m.p95_ms, limit)} ms ({reach}) is over {limit:g} ms"
    else:
        text = f"p95 {m.p95_ms:.4g} ms is within {limit:g} ms, but its 95 % interval {reach} crosses it"
    return Miss("p95_ms", high / limit - 1, high, timed or low > limit, text)


def _accuracy(m: Measured, limit: float | None) -> Miss | None:
    if limit is None or (m.ap is not None and m.ap >= limit):
        return None
    if m.ap is None:
        return Miss("min_ap", None, None, m.effort == "full", "AP was not measured")
    sure = m.effort == "full" or m.ap + m.ap_margin < limit
    margin = f" (±{m.ap_margin:.3f})" if m.ap_margin else ""
    return Miss("min_ap", 1 - m.ap / limit, m.ap, sure, f"AP {_apart(m.ap, limit)}{margin} is under {limit:g}")


def _memory(m: Measured, limit: float | None) -> Miss | None:
    if limit is None or (m.memory_mb is not None and m.memory_mb <= limit):
        return None
    if m.memory_mb is None:
        return Miss("memory_mb", None, None, m.effort in ("time", "full"), "memory was not measured")
    text = f"memory {_apart(m.memory_mb, limit)} MB is over {limit:g} MB"
    # a full measurement sees more pictures, and a peak never falls
    return Miss("memory_mb", m.memory_mb / limit - 1, m.memory_mb, True, text)


def _apart(value: float, limit: float) -> str:
    """`value` with as many digits as tell it from `limit`."""
    return next((f"{value:.{d}g}" for d in range(4, 18) if f"{value:.{d}g}" != f"{limit:.{d}g}"), f"{value:g}")


def _judge(m: Measured, missed: tuple[Miss, ...], smallest: Measured | None, accurate: Measured | None) -> Row:
    if m.problem:
        return Row(m, "refused", m.problem)
    sure = [miss for miss in missed if miss.sure]
    if m.effort != "full" and not sure:
        return Row(m, *_open_or_beaten(m, smallest, accurate), misses=missed)
    if missed:
        how = " (screening)" if m.effort == "screen" else ""
        return Row(m, "refused", "; ".join(miss.text for miss in sure) + how, missed)
    titles = [title for title, winner in (("smallest", smallest), ("most accurate", accurate)) if winner is m]
    return Row(m, "kept", f"the {' and the '.join(titles)} that keeps every limit" if titles else _outdone(smallest, accurate))


def _outdone(smallest: Measured | None, accurate: Measured | None) -> str:
    said = [] if smallest is None else [f"{smallest.candidate} is smaller"]
    said += [] if accurate is None else [f"{accurate.candidate} at least as accurate (AP {accurate.ap:.3f})"]
    return "keeps every limit, but " + " and ".join(said)


def _open_or_beaten(m: Measured, smallest: Measured | None, accurate: Measured | None) -> tuple[str, str]:
    """What could still win is open: nothing is kept yet, it may be no larger, or it may be no less accurate."""
    if m.effort == "none":
        return "open", "not measured yet"
    size, best = size_order(m)[0], math.inf if m.ap is None else m.ap + m.ap_margin
    if smallest is None or size <= size_order(smallest)[0] or (accurate is not None and best >= (accurate.ap or 0.0)):
        return "open", "may keep every limit, but was not measured in full"
    beat = "" if accurate is None else f", and its AP of at most {best:.3f} is under the {accurate.ap:.3f} of {accurate.candidate}"
    return "beaten", f"not measured in full: {smallest.candidate} is smaller{beat}"


def pareto(measured: Iterable[Measured]) -> tuple[Candidate, ...]:
    """Fully measured candidates that nothing both as fast and as accurate beats in one of the two, fastest first."""
    known = [
        (m.p95_ms, -m.ap, size_order(m), m) for m in measured if m.effort == "full" and not m.problem and m.p95_ms and m.ap is not None
    ]
    front: list[Candidate] = []
    best = math.inf
    for _, loss, _, m in sorted(known, key=lambda row: row[:3]):
        if loss < best:
            front.append(m.candidate)
            best = loss
    return tuple(front)


def _open_note(rows: Sequence[Row]) -> list[str]:
    count = sum(row.verdict == "open" for row in rows)
    return [f"{count} of {len(rows)} candidates were not measured in full and could still win; the answer is provisional"] if count else []


def _advise(refused: Sequence[Row], level: ServiceLevel) -> list[str]:
    """Nearest misses, the least change of one limit that would help, and what to try for the nearest."""
    near = [row for row in refused if row.distance < math.inf]
    said = [f"nearest miss: {r.measured.candidate}: " + ", ".join(_by_how_much(m) for m in r.misses) for r in near[:NEAREST]]
    for name, better in (("p95_ms", min), ("min_ap", max), ("memory_mb", min)):
        alone = [
            (row.misses[0].needed, row)
            for row in near
            if row.measured.effort == "full" and len(row.misses) == 1 and row.misses[0].limit == name and row.misses[0].needed is not None
        ]
        if alone:
            needed = better(n for n, _ in alone)
            row = next(r for n, r in alone if n == needed)
            said.append(f"{_relaxed(name, needed)} alone would let in {row.measured.candidate}")
    if near:
        said += _remedies(near, {m.limit for m in near[0].misses}, level)
    return said


def _by_how_much(miss: Miss) -> str:
    short = 100 * (miss.short or 0.0)
    return f"{miss.text}, by {short:.1f} %" if short >= 0.1 else f"{miss.text}, by {short:.1g} %"


def _relaxed(name: str, needed: float) -> str:
    """A rounded limit that is kept for certain."""
    if name == "min_ap":
        return f"--min-ap {math.floor(needed * 1000) / 1000:.3f}"
    return f"--p95-ms {math.ceil(needed * 10) / 10:.1f}" if name == "p95_ms" else f"--memory-mb {math.ceil(needed):d}"


def _remedies(near: Sequence[Row], limits: set[str], level: ServiceLevel) -> list[str]:
    """What was not offered for the nearest miss and goes the right way."""
    nearest = near[0].measured
    c, said = nearest.candidate, []
    if limits & {"p95_ms", "memory_mb"}:
        if nearest.p95_ms is not None and nearest.p95_ms <= level.p95_ms and limits == {"p95_ms"}:
            said.append("more runs narrow the interval of p95")
        least = [
            min(values)
            for values in zip(*(r.measured.candidate.extent for r in near if r.measured.candidate.family == c.family), strict=True)
        ]
        said.append(
            f"less work for {c.model}: input under {least[0]}x{least[1]}"
            + (f", fewer than {least[2]} decoder layers" if least[2] > 1 else "")
            + f", fewer than {least[3]} queries"
        )
        said.append(f"an engine or precision faster than {c.engine} {c.precision}")
    if "min_ap" in limits:
        said.append("fine-tune on this data, or offer a larger model, a larger input or more decoder layers")
    return [f"what may help: {'; '.join(said)}"]
