"""Verdicts on artifacts whose difference is known, interleaved and recorded; and what a limit makes of them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from known_times import PICTURES, SlowEngine, Time, detector, instruments, jitter

from rapidetr.bench.compare import Comparison, compare_detectors, compare_reports, judge
from rapidetr.bench.loads import LoadShape
from rapidetr.bench.runner import Plan, assemble, measure_row, threads
from rapidetr.core.errors import ConfigError
from rapidetr.core.reports import BenchReport

PLAN = Plan(rounds=40, seconds=1e9, forward_calls=0)


def pair(factor: float, **sensors) -> Comparison:
    """Two engines on one machine that is slow in every other minute; the first takes `factor` of the time of the second."""
    time = Time()
    ours, theirs = jitter(1), jitter(2)

    def weather() -> float:
        return 1.6 if time.seconds // 3 % 2 else 1.0

    both = (
        detector(SlowEngine(time.sleep, lambda: factor * ours() * weather())),
        detector(SlowEngine(time.sleep, lambda: theirs() * weather())),
    )
    return compare_detectors(both, ("new", "old"), PICTURES, [LoadShape()], PLAN, instruments=instruments(time, **sensors))


@pytest.mark.parametrize(("factor", "expected"), [(0.7, "faster"), (1.4, "slower"), (1.0, "no difference")])
def test_interleaved_rounds_tell_what_is_known(factor: float, expected: str) -> None:
    found = pair(factor)
    middle, tail = found.differences
    assert (found.paired, middle.percentile, tail.percentile) == (True, 50, 95)
    assert middle.verdict == expected
    assert middle.interval[0] <= factor <= middle.interval[1]
    assert found.problems == ()
    assert Comparison.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert found.lines()[0] == "new against old, interleaved"
    assert found.lines()[1].endswith(f"): {expected}")


def test_rounds_begin_with_either_side_in_turn() -> None:
    time, order = Time(), []

    def engine(name: str) -> SlowEngine:
        def run_s() -> float:
            order.append(name)
            return 0.02

        return SlowEngine(time.sleep, run_s)

    both = detector(engine("a")), detector(engine("b"))
    found = compare_detectors(both, ("a", "b"), PICTURES, [LoadShape()], Plan(rounds=4), instruments=instruments(time))
    assert "".join(order[-24:]) == "bbbaaaaaabbbbbbaaaaaabbb"
    assert [d.verdict for d in found.differences] == ["no difference"]  # p95 needs more runs than 12


def test_a_disturbed_comparison_is_not_usable() -> None:
    found = pair(1.0, mhz=iter([3000.0] * 3 + [2000.0] * 10_000))
    assert found.problems == (f"batch 1, threads {threads()}: CPU clock fell from 3000 to 2000 MHz (67%; at least 85% expected)",)
    kept, said = judge(found, 0.05)
    assert not kept
    assert said[0] == f"cannot be judged: {found.problems[0]}"


def test_interleaving_takes_one_shape_of_load() -> None:
    with pytest.raises(ConfigError, match="interleaved rounds are closed, of one stream and without prefetch"):
        compare_detectors((None, None), ("a", "b"), PICTURES, [LoadShape(streams=2)], PLAN)  # type: ignore[arg-type]


def recorded(seed: int, factor: float = 1.0, **changes) -> BenchReport:
    time, runs = Time(), jitter(seed)
    engine = SlowEngine(time.sleep, lambda: factor * runs())
    row = measure_row(detector(engine), "mine", PICTURES, LoadShape(), PLAN, instruments=instruments(time))
    data = {"path": "photos", "sha256": None, "pictures": 4, "split": None}
    return assemble([replace(row, **changes)], command="rapidetr bench", dataset=data)


@pytest.mark.parametrize(("factor", "verdicts"), [(0.6, {"faster"}), (1.6, {"slower"}), (1.0, {"no difference"})])
def test_recorded_reports_tell_what_is_known(factor: float, verdicts: set[str]) -> None:
    found = compare_reports(recorded(3, factor), recorded(4))
    assert {d.verdict for d in found.differences} == verdicts
    assert not found.paired


def test_a_limit_is_broken_by_what_is_certain_alone() -> None:
    base = recorded(5)
    for factor, expected in ((1.0, True), (1.3, False)):
        found = compare_reports(recorded(6, factor), base)
        kept, said = judge(found, 0.05)
        assert kept is expected
        assert any(line.startswith("slower than allowed (5.0%): batch 1, ") for line in said) is not expected
    assert judge(found, 2.0) == (True, [])
    doubt = replace(found, differences=(replace(found.differences[0], interval=(0.98, 1.2)),))
    kept, (said,) = judge(doubt, 0.05)
    assert kept
    assert said.startswith("in doubt, more rounds would tell: ")


def test_what_differs_besides_the_artifact_is_told() -> None:
    base = recorded(5)
    slow = replace(base, environment={**base.environment, "processor": {**base.environment["processor"], "model": "another"}})
    (note,) = compare_reports(base, slow).notes
    assert note.startswith("another environment: processor.model (another → ")
    unusable = recorded(5, usable=False, reasons=("too warm",))
    assert compare_reports(unusable, base).problems == (f"{base.rows[0].setting}: too warm",)
    with pytest.raises(ConfigError, match="the reports have no setting in common"):
        compare_reports(base, recorded(5, batch=2))
    both = replace(base, rows=(*base.rows, replace(base.rows[0], batch=2)))
    assert compare_reports(both, base).notes == (f"not in the baseline: {both.rows[1].setting}",)
    assert np.shape(base.rows[0].totals_ms) == (40, 3)
