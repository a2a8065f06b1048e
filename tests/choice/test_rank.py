"""Constructed cases with known answers, and what must hold for any."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rapidetr.choice.rank
from rapidetr.choice.rank import Answer, rank
from rapidetr.choice.records import Candidate, Measured, Promise, ServiceLevel, read_promise
from rapidetr.core.errors import ConfigError, ServiceLevelUnmet

LEVEL = ServiceLevel(40.0, 0.40, 800.0)


def one(
    model: str, p95: float | None = 30.0, ap: float | None = 0.45, memory: float | None = 500.0, gmacs: float = 10.0, **more: Any
) -> Measured:
    """A full measurement whose interval is p95 ±1 ms."""
    interval = None if p95 is None else (p95 - 1, p95 + 1)
    fields = {"p50_ms": p95 and p95 * 0.9, "p95_ms": p95, "p95_interval_ms": interval, "ap": ap, "memory_mb": memory, "gmacs": gmacs}
    return Measured(Candidate(model, (384, 512), 2, 300), **{**fields, **more})


def name(m: Measured | None) -> str | None:
    return m and m.candidate.model


def reasons(answer: Answer) -> dict[str, tuple[str, str]]:
    return {row.measured.candidate.model: (row.verdict, row.reason) for row in answer.rows}


def test_a_clear_winner_is_both() -> None:
    answer = rank([one("slow", p95=60), one("good"), one("blind", ap=0.2), one("fat", memory=900)], LEVEL)
    assert (name(answer.smallest), name(answer.most_accurate)) == ("good", "good")
    assert answer.advice == ()
    assert reasons(answer) == {
        "good": ("kept", "the smallest and the most accurate that keeps every limit"),
        "fat": ("refused", "memory 900 MB is over 800 MB"),
        "slow": ("refused", "p95 60 ms (59 to 61) is over 40 ms"),
        "blind": ("refused", "AP 0.2 is under 0.4"),
    }
    assert [row.measured.candidate.model for row in answer.rows] == ["good", "fat", "blind", "slow"]  # short by 12 %, 50 %, 52 %


def test_smallest_and_most_accurate_differ_and_the_rest_are_told_why() -> None:
    answer = rank([one("c", ap=0.5, gmacs=30), one("b", ap=0.45, gmacs=20), one("a", ap=0.41, gmacs=10)], LEVEL)
    assert (name(answer.smallest), name(answer.most_accurate)) == ("a", "c")
    label = "384x512, 2 layers, 300 queries, torch float32"
    assert reasons(answer)["b"] == ("kept", f"keeps every limit, but a {label} is smaller and c {label} at least as accurate (AP 0.500)")


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({"gmacs": 9.0}, {"memory": 1.0}),
        ({"memory": 400.0}, {"p95": 20.0}),
        ({"p95": 29.0}, {"ap": 0.5}),
        ({"ap": 0.46}, {}),
        ({}, {}),
    ],
)
def test_ties_are_broken_in_the_stated_order(better: dict[str, float], worse: dict[str, float]) -> None:
    rows = [one("y" if better else "x", **better), one("x" if better else "y", **worse)]
    winner = "y" if better else "x"
    assert {name(rank(order, LEVEL).smallest) for order in (rows, rows[::-1])} == {winner}


def test_equally_accurate_the_smaller_wins() -> None:
    assert name(rank([one("big", gmacs=20), one("small")], LEVEL).most_accurate) == "small"


def test_an_interval_that_crosses_the_limit_counts_as_not_kept() -> None:
    answer = rank([one("edge", p95=39.5)], LEVEL)
    assert answer.smallest is None
    assert reasons(answer)["edge"] == ("refused", "p95 39.5 ms is within 40 ms, but its 95 % interval 38.5 to 40.5 crosses it")
    assert "more runs narrow the interval of p95" in answer.advice[-1]
    assert rank([one("touch", p95=39.0)], LEVEL).smallest is not None  # 40 itself is kept


def test_what_was_not_measured_is_not_kept() -> None:
    rows = [one("a", ap=None), one("b", memory=None), one("c", p95=None), one("d", p95_interval_ms=None)]
    rows.append(one("e", problem="the run is not usable: other processes"))
    few = replace(one("f"), p95_ms=None, p95_interval_ms=(25.0, None))
    answer = rank([*rows, few], LEVEL)
    assert answer.smallest is None
    assert {model: reason for model, (_, reason) in reasons(answer).items()} == {
        "a": "AP was not measured",
        "b": "memory was not measured",
        "c": "p95 was not measured",
        "d": "p95 30 ms has no confidence interval",
        "e": "the run is not usable: other processes",
        "f": "too few runs for p95",
    }
    free = rank(rows, ServiceLevel(40.0))
    assert (name(free.smallest), name(free.most_accurate)) == ("a", "b")  # of b the memory is not known, of a the AP


def test_impossible_demands_tell_the_nearest_misses_and_what_would_help() -> None:
    rows = [one("fast", ap=0.36, p95=20), one("mid", p95=44), one("far", p95=90, ap=0.1), one("fat", memory=810.2)]
    answer = rank(rows, LEVEL)
    label = "384x512, 2 layers, 300 queries, torch float32"
    assert answer.advice[:6] == (
        f"nearest miss: fat {label}: memory 810.2 MB is over 800 MB, by 1.3 %",
        f"nearest miss: fast {label}: AP 0.36 is under 0.4, by 10.0 %",
        f"nearest miss: mid {label}: p95 44 ms (43 to 45) is over 40 ms, by 12.5 %",
        f"--p95-ms 45.0 alone would let in mid {label}",
        f"--min-ap 0.360 alone would let in fast {label}",
        f"--memory-mb 811 alone would let in fat {label}",
    )
    relaxed = [ServiceLevel(45.0, 0.4, 800.0), ServiceLevel(40.0, 0.36, 800.0), ServiceLevel(40.0, 0.4, 811.0)]
    assert [name(rank(rows, level).smallest) for level in relaxed] == ["mid", "fast", "fat"]


def test_numbers_that_print_alike_get_more_digits() -> None:
    assert reasons(rank([one("a", ap=0.39999)], LEVEL))["a"][1] == "AP 0.39999 is under 0.4"


def test_screenings_are_refused_only_for_certain() -> None:
    kept = one("kept", gmacs=10, ap=0.45)
    screens = {
        "slow": one("slow", effort="screen", p95_ms=None, p95_interval_ms=(41.0, None)),
        "edge": one("edge", effort="screen", p95_ms=None, p95_interval_ms=(39.0, None), ap=0.41, ap_margin=0.05),
        "blind": one("blind", effort="screen", ap=0.34, ap_margin=0.05),
        "unsure": one("unsure", effort="screen", ap=0.36, ap_margin=0.05, gmacs=5),
        "beaten": one("beaten", effort="screen", ap=0.42, ap_margin=0.02, gmacs=20),
        "unknown": Measured(Candidate("unknown", (384, 512), 2, 300), effort="none"),
    }
    answer = rank([kept, *screens.values()], LEVEL)
    verdicts = {model: verdict for model, (verdict, _) in reasons(answer).items()}
    assert verdicts == {
        "kept": "kept", "slow": "refused", "edge": "open", "blind": "refused", "unsure": "open", "beaten": "beaten", "unknown": "open",
    }  # fmt: skip
    assert reasons(answer)["slow"][1] == "p95 of at least 41 ms is over 40 ms (screening)"
    assert answer.notes == ("3 of 7 candidates were not measured in full and could still win; the answer is provisional",)
    assert not answer.promise.complete


def test_pareto_front() -> None:
    rows = [
        one("a", p95=20, ap=0.3),
        one("b", p95=30, ap=0.4),
        one("c", p95=35, ap=0.39),
        one("d", p95=50, ap=0.5),
        one("e", p95=20, ap=0.29),
    ]
    assert [c.model for c in rank(rows, LEVEL).pareto] == ["a", "b", "d"]


def test_contradictions_are_errors() -> None:
    with pytest.raises(
        ConfigError, match=r"^a 384x512, 2 layers, 300 queries, torch float32 was measured twice \(x, y\); name one report of it$"
    ):
        rank([one("a", source="x"), one("a", source="y")], LEVEL)
    with pytest.raises(ConfigError, match=r"^AP was measured on 2 different datasets \(1111, 2222\); expected one$"):
        rank([one("a", dataset_sha256="1111"), one("b", dataset_sha256="2222")], LEVEL)
    with pytest.raises(ConfigError, match=r"^min_ap is 40; expected 0 to 1$"):
        ServiceLevel(40.0, 40)
    with pytest.raises(ConfigError, match=r"^p95_ms is nan; expected a number above 0$"):
        ServiceLevel(float("nan"))
    with pytest.raises(ConfigError, match=r"p95 30.0 ms has the interval 31 to 32; expected one around it$"):
        one("a", p95_interval_ms=(31, 32))


def test_answer_and_promise_go_to_json_and_back(tmp_path: Path) -> None:
    answer = rank([one("a"), one("b", p95=60), one("c", ap=None)], LEVEL, notes=["said"], environment={"os": "x"})
    assert Answer.from_dict(json.loads(json.dumps(answer.to_dict()))) == answer
    file = tmp_path / "service_level.json"
    file.write_text(json.dumps(answer.promise.to_dict()))
    assert read_promise(file) == (answer.promise, answer.smallest)
    none = rank([one("b", p95=60)], LEVEL).promise
    assert Promise.from_dict(json.loads(json.dumps(none.to_dict()))) == none
    file.write_text(json.dumps(none.to_dict()))
    with pytest.raises(ServiceLevelUnmet, match=r"no configuration keeps p95 at most 40 ms, AP at least 0.4, memory at most 800 MB; relax"):
        read_promise(file)
    file.write_text(json.dumps({**none.to_dict(), "schema": "old"}))
    with pytest.raises(ConfigError, match=r"schema is 'old'; expected 'rapidetr.service-level/1'"):
        read_promise(file)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([20.0, 38.9, 39.0, 39.5, 45.0]),
            st.sampled_from([0.3, 0.4, 0.45, None]),
            st.sampled_from([1.0, 2.0, 3.0]),
            st.booleans(),
        ),
        max_size=8,
    )
)
def test_the_answer_keeps_all_limits_and_nothing_that_does_is_smaller_or_better(
    rows: list[tuple[float, float | None, float, bool]],
) -> None:
    measured = [one(f"m{i}", p95=p95, ap=ap, gmacs=g, memory=900.0 if fat else 700.0) for i, (p95, ap, g, fat) in enumerate(rows)]
    answer = rank(measured, LEVEL)
    keeping = [m for m in measured if m.p95_ms + 1 <= 40 and m.ap is not None and m.ap >= 0.4 and m.memory_mb <= 800]
    assert {row.measured.candidate for row in answer.of("kept")} == {m.candidate for m in keeping}
    assert len(answer.rows) == len(measured)
    assert all(row.reason for row in answer.rows)
    if not keeping:
        assert answer.smallest is answer.most_accurate is None
        assert bool(answer.advice) == any(m.ap is not None for m in measured)
        return
    assert answer.smallest in keeping
    assert answer.most_accurate in keeping
    assert answer.smallest.gmacs == min(m.gmacs for m in keeping)
    assert answer.most_accurate.ap == max(m.ap for m in keeping)
    assert rank(measured[::-1], LEVEL).smallest == answer.smallest


def test_ranking_needs_the_core_alone() -> None:
    folder = Path(rapidetr.choice.rank.__file__).parent
    for file in ("rank.py", "records.py", "reports.py"):
        tree = ast.parse((folder / file).read_text(encoding="utf-8"))
        modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module.startswith("rapidetr")}
        assert {m.split(".")[1] for m in modules} <= {"core", "choice"}
        assert not modules & {"rapidetr.choice.search", "rapidetr.choice.measure"}
