"""The search finds what measuring everything would find, in a part of the time, and loses nothing when it is killed."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import recorded_grids
from recorded_grids import CANDIDATES, measured

from rapidetr.choice.measure import margin_of, spread_out
from rapidetr.choice.rank import Answer, rank
from rapidetr.choice.records import Candidate, Measured, ServiceLevel
from rapidetr.choice.search import AnyGraph, Journal, grid, search
from rapidetr.core.config import VARIANTS
from rapidetr.core.errors import ConfigError

GRIDS = [dict(zip(CANDIDATES, rows, strict=True)) for rows in json.loads(recorded_grids.FILE.read_text())]
LEVELS = [
    ServiceLevel(60.0),  # nothing is so fast
    ServiceLevel(80.0, 0.45),
    ServiceLevel(130.0, 0.45, 880.0),
    ServiceLevel(130.0, 0.50),
    ServiceLevel(170.0, 0.50),
    ServiceLevel(250.0, 0.50),  # latency refuses nothing
    ServiceLevel(250.0, 0.60),  # nothing is so accurate
]
CUT = ServiceLevel(130.0, 0.50)


class Recorder:
    """Measures by looking it up; adds up the time that it would have taken."""

    def __init__(self, records: dict[Candidate, Any], *, dies_after: int | None = None) -> None:
        self.records, self.dies_after = records, dies_after
        self.steps: list[tuple[Candidate, str]] = []
        self.seconds = 0.0

    def __call__(self, candidate: Candidate, step: str) -> Measured:
        if len(self.steps) == self.dies_after:
            raise KeyboardInterrupt
        self.steps.append((candidate, step))
        found = measured(candidate, step, self.records[candidate])
        self.seconds += found.seconds
        return found


def winners(answer: Answer) -> tuple[Candidate | None, Candidate | None]:
    return answer.smallest and answer.smallest.candidate, answer.most_accurate and answer.most_accurate.candidate


@pytest.mark.parametrize("level", LEVELS, ids=str)
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, len(GRIDS)))])
def test_same_answer_as_measuring_everything_in_two_fifths_of_the_time(level: ServiceLevel, seed: int) -> None:
    recorder, everything = Recorder(GRIDS[seed]), [measured(c, "full", record) for c, record in GRIDS[seed].items()]
    answer = search(CANDIDATES, level, recorder)
    exhaustive = rank(everything, level)
    assert winners(answer) == winners(exhaustive)
    assert recorder.seconds <= 0.40 * sum(m.seconds for m in everything)
    assert len(answer.rows) == len(CANDIDATES)
    assert not answer.of("open")
    assert {r.measured.candidate for r in answer.of("kept")} <= {r.measured.candidate for r in exhaustive.of("kept")}
    kept = {r.measured.candidate for r in exhaustive.of("kept")}
    assert not kept & {r.measured.candidate for r in answer.of("refused")}  # what would be kept is at most beaten


def test_killed_and_started_again_it_measures_nothing_twice(tmp_path: Path) -> None:
    path, through = tmp_path / "journal.jsonl", Recorder(GRIDS[0])
    expected = search(CANDIDATES, CUT, through)
    steps: list[tuple[Candidate, str]] = []
    for dies_after in (7, 30, None):
        recorder = Recorder(GRIDS[0], dies_after=dies_after)
        if path.exists():
            path.write_bytes(path.read_bytes() + b'{"candidate": {"mod')  # it was writing when it died
        with suppress(KeyboardInterrupt):
            answer = search(CANDIDATES, CUT, recorder, journal=Journal(path, {"data": "x"}))
        steps += recorder.steps
    assert steps == through.steps
    assert answer == expected
    idle = Recorder(GRIDS[0])
    assert search(CANDIDATES, CUT, idle, journal=Journal(path, {"data": "x"})) == expected
    assert idle.steps == []
    other = Recorder(GRIDS[0])
    search(CANDIDATES, ServiceLevel(130.0, 0.45), other, journal=Journal(path, {"data": "x"}))
    assert not set(other.steps) & set(steps)  # another level uses them all


def test_a_journal_of_other_settings_or_weights_is_not_mixed_in(tmp_path: Path) -> None:
    path, found = tmp_path / "j.jsonl", measured(CANDIDATES[0], "full", GRIDS[0][CANDIDATES[0]])
    Journal(path, {"data": "x"}).append(found)
    assert Journal(path, {"data": "x"}).read() == [found]
    assert Journal(path, {"data": "x"}, {CANDIDATES[0].model: "new"}).read() == []
    with pytest.raises(ConfigError, match=r"j.jsonl: holds measurements with other data; choose another --out, or remove it$"):
        Journal(path, {"data": "y"})
    path.write_text("[]\n")
    with pytest.raises(ConfigError, match=r"j.jsonl line 1: expected a JSON object; remove the line or the file$"):
        Journal(path, {"data": "x"})


def test_the_time_budget_ends_it_with_what_there_is() -> None:
    recorder = Recorder(GRIDS[0])
    answer = search(CANDIDATES, CUT, recorder, budget_s=900.0, now=lambda: recorder.seconds)
    assert 900 <= recorder.seconds < 1400  # the last measurement began before, and takes no longer than any does
    assert answer.of("open")
    assert answer.notes[0] == f"stopped after {recorder.seconds / 60:.1f} minutes, as the time budget says"
    assert not answer.promise.complete


def test_a_candidate_that_fails_is_refused_and_tried_again_later(tmp_path: Path) -> None:
    bad = CANDIDATES[0]

    def failing(works: Callable[[Candidate, str], Measured]) -> Callable[[Candidate, str], Measured]:
        return lambda c, step: Measured(c, step, problem="could not be measured: no") if c == bad else works(c, step)

    path = tmp_path / "j.jsonl"
    answer = search(CANDIDATES, CUT, failing(Recorder(GRIDS[0])), journal=Journal(path, {}))
    assert [r.reason for r in answer.rows if r.measured.candidate == bad] == ["could not be measured: no"]
    again = Recorder(GRIDS[0])
    search(CANDIDATES, CUT, again, journal=Journal(path, {}))
    assert {c for c, _ in again.steps} == {bad}


def test_more_work_than_what_is_too_slow_is_not_even_screened() -> None:
    recorder = Recorder(GRIDS[0])
    answer = search(CANDIDATES, ServiceLevel(60.0), recorder)
    assert [step for _, step in recorder.steps] == ["screen"] * 3  # the least of each model
    assert "not measured: at least as much work as nano 384x384, 1 layer, 100 queries, torch float32, whose p95 of at least" in " ".join(
        row.reason for row in answer.rows
    )


class Artifact:
    """An engine with a fixed graph, made of nano alone."""

    name, precisions = "openvino", ("int8",)

    def stored(self, model: str) -> tuple[tuple[int, int], int, int]:
        return (320, 320), 2, 200


def test_the_grid() -> None:
    models = {"nano": VARIANTS["nano"], "pico": VARIANTS["pico"]}
    made = grid(
        models,
        [AnyGraph("torch", ("float32", "bfloat16")), Artifact()],
        sizes=[(384, 384), (100, 100)],
        decoder_layers=None,
        queries=[100, 300],
    )
    torch = [c for c in made if c.engine == "torch"]
    assert {(c.model, c.size_hw, c.decoder_layers, c.queries) for c in torch} == {
        ("nano", (384, 384), 1, 100), ("nano", (384, 384), 1, 300), ("nano", (384, 384), 2, 100), ("nano", (384, 384), 2, 300),
        ("pico", (384, 384), 1, 50), ("pico", (384, 384), 2, 50),
    }  # fmt: skip
    assert len(torch) == 12
    assert [str(c) for c in made if c.engine != "torch"] == [
        "nano 320x320, 2 layers, 200 queries, openvino int8",
        "pico 320x320, 2 layers, 200 queries, openvino int8",
    ]
    assert grid({"nano": VARIANTS["nano"]}, [AnyGraph("torch")]) == [Candidate("nano", (384, 384), 2, 300)]
    with pytest.raises(ConfigError, match=r"^nano: no --sizes fit: image height 100 is not a multiple of 32"):
        grid(models, [AnyGraph("torch")], sizes=[(100, 100)])
    with pytest.raises(ConfigError, match=r"^there are no candidates; expected at least one model$"):
        search([], CUT, Recorder({}))


def test_parts_of_a_dataset() -> None:
    assert spread_out(range(10), 4) == [0, 2, 5, 7]
    assert spread_out(range(3), 9) == [0, 1, 2]
    assert margin_of(50, 50) == 0
    assert margin_of(100, 400) == pytest.approx(2.5 * 0.3 * 0.0075**0.5, rel=1e-12)
