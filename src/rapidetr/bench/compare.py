"""Two artifacts against each other: interleaved in one process, or from recorded reports; with intervals and verdicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from rapidetr.bench.loads import Load, LoadShape, warm_up
from rapidetr.bench.runner import CALLS, Instruments, Plan, sample, set_threads, threads
from rapidetr.core.errors import ConfigError
from rapidetr.core.reports import BenchReport, BenchRow, Strict, find_row
from rapidetr.core.statistics import LEAST_EFFECT, Interval, least_samples, ratio_interval, verdict
from rapidetr.runtime.detector import Detector
from rapidetr.runtime.drift import compare as find_drifts

PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class Difference(Strict):
    """One percentile of one setting: milliseconds of both, their ratio (below 1: `ours` is faster), its 95 % interval."""

    setting: str
    percentile: int
    ours_ms: float
    baseline_ms: float
    ratio: float
    interval: Interval
    verdict: str  # faster, slower or no difference

    def __str__(self) -> str:
        low, high = self.interval
        times = f"{self.ours_ms:.2f} ms against {self.baseline_ms:.2f} ms"
        return f"{self.setting}: p{self.percentile} {times}, ratio {self.ratio:.3f} ({low:.3f} to {high:.3f}): {self.verdict}"


@dataclass(frozen=True)
class Comparison(Strict):
    """`paired`: rounds of both ran in turn in one process. `problems` make it unusable, `notes` do not."""

    ours: str
    baseline: str
    paired: bool
    differences: tuple[Difference, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @classmethod
    def restored(cls, name: str, value: Any) -> Any:
        return tuple(map(Difference.from_dict, value)) if name == "differences" else super().restored(name, value)

    def lines(self) -> list[str]:
        how = "interleaved" if self.paired else "recorded one after the other"
        marks = [*(f"NOT USABLE: {p}" for p in self.problems), *(f"note: {n}" for n in self.notes)]
        return [f"{self.ours} against {self.baseline}, {how}", *map(str, self.differences), *marks]


def compare_reports(ours: BenchReport, baseline: BenchReport) -> Comparison:
    """Rows of the same load; ConfigError where there are none. Rounds did not run side by side, so they are drawn apart."""
    pairs = [(row, other) for row in ours.rows if (other := find_row(baseline.rows, row))]
    if not pairs:
        raise ConfigError(f"the reports have no setting in common ({settings(ours)} against {settings(baseline)}); measure the same")
    differences = [d for row, other in pairs for d in differ(row.setting, row.totals_ms, other.totals_ms, paired=False)]
    problems = [f"{row.setting}: {'; '.join(row.reasons)}" for pair in pairs for row in pair if not row.usable]
    alone = [row.setting for row in ours.rows if find_row(baseline.rows, row) is None]
    notes = [f"not in the baseline: {setting}" for setting in alone]
    drifts = [str(d) for d in find_drifts(baseline.environment, ours.environment) if d.effect in ("speed", "both")]
    notes += [f"another environment: {', '.join(drifts)}"] if drifts else []
    return Comparison(name_of(ours), name_of(baseline), False, tuple(differences), tuple(problems), tuple(notes))


def compare_detectors(
    detectors: tuple[Detector, Detector],
    names: tuple[str, str],
    pictures: Sequence[Any],
    shapes: Sequence[LoadShape],
    plan: Plan,
    *,
    instruments: Instruments | None = None,
) -> Comparison:
    """The first against the second, the baseline: rounds of both in turn, each starting every other time."""
    tools, differences, problems, notes = instruments or Instruments(), list[Difference](), list[str](), list[str]()
    for i, shape in enumerate(shapes):
        if shape.rate is not None or shape.prefetch or shape.streams > 1:
            raise ConfigError(f"interleaved rounds are closed, of one stream and without prefetch; got {shape}")
        if i:
            tools.sleep(plan.cool_down_s)
        watch = tools.watch(detectors[0].engine.device)
        loads = [
            Load(d, pictures, shape, plan.threshold, plan.cold_files, tools.on(d.engine.device), tools.sleep, lambda: None)
            for d in detectors
        ]
        set_threads(shape.threads)
        for load in loads:
            warm_up(load, seconds=plan.warm_up_s)
        watch.sample()
        ours, theirs = interleave(loads, plan, partial(sample, watch, tools.now))
        watch.sample()
        setting = f"batch {shape.batch}, threads {threads()}"
        problems += [f"{setting}: {reason}" for reason in watch.judge().reasons]
        notes += [f"{setting}: time was up after {len(ours)} of {plan.rounds} rounds"] if len(ours) < plan.rounds else []
        differences += differ(setting, ours, theirs, paired=True)
    return Comparison(*names, True, tuple(differences), tuple(problems), tuple(notes))


def interleave(loads: Sequence[Load], plan: Plan, between: Callable[[], object]) -> tuple[np.ndarray, np.ndarray]:
    """Milliseconds [rounds, CALLS] of both; both see the same pictures in the same round."""
    times: list[list[list[float]]] = [[], []]
    start = loads[0].now()
    for i in range(plan.rounds):
        for which in (0, 1) if i % 2 else (1, 0):
            times[which].append([1000 * loads[which].call(CALLS * i + k).total_s for k in range(CALLS)])
            between()
        if loads[0].now() - start > 2 * plan.seconds:
            break
    return np.array(times[0]), np.array(times[1])


def differ(setting: str, ours: Any, baseline: Any, *, paired: bool, least_effect: float = LEAST_EFFECT) -> list[Difference]:
    """At p50 and, where both have enough runs, at p95."""
    a, b, found = np.array(ours, np.float64), np.array(baseline, np.float64), []
    for p in PERCENTILES:
        if min(a.size, b.size) >= least_samples(p):
            ratio, interval = ratio_interval(a, b, p, paired=paired)
            both = float(np.percentile(a, p)), float(np.percentile(b, p))
            found.append(Difference(setting, p, *both, ratio, interval, verdict(interval, least_effect=least_effect)))
    return found


def judge(comparison: Comparison, max_slowdown: float) -> tuple[bool, list[str]]:
    """(whether the limit is kept, a line for each reason and doubt). Broken: an interval that lies beyond it as a whole, or a
    measurement that cannot be used. An interval that crosses the limit is said, and does not break it."""
    limit, said, kept = 1 + max_slowdown, [], not comparison.problems
    said += [f"cannot be judged: {problem}" for problem in comparison.problems]
    for d in comparison.differences:
        if d.interval[0] > limit:
            kept = False
            said.append(f"slower than allowed ({max_slowdown:.1%}): {d}")
        elif d.interval[1] > limit:
            said.append(f"in doubt, more rounds would tell: {d}")
    return kept, said


def settings(report: BenchReport) -> str:
    return "; ".join(row.setting for row in report.rows) or "no rows"


def name_of(report: BenchReport) -> str:
    row: BenchRow | None = report.rows[0] if report.rows else None
    return "an empty report" if row is None else f"{row.artifact} {row.size_hw[0]}x{row.size_hw[1]} {row.engine} {row.precision}"
