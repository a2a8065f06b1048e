"""The search among what a real machine measured, with all its noise (benchmarks/choose_grid.py records it)."""

from __future__ import annotations

import json
from pathlib import Path

import choose_grid
import pytest

from rapidetr.choice.measure import Trial
from rapidetr.choice.records import Candidate, Measured, ServiceLevel

RECORD = json.loads(max(Path(choose_grid.__file__).parent.glob("choose_grid_*.json")).read_text())
MEASURED = [{step: Measured.from_dict(found) for step, found in steps.items()} for steps in RECORD["measured"]]
RECORDS = {steps["time"].candidate: steps for steps in MEASURED}
ASKED = [ServiceLevel(40.0, 0.3), ServiceLevel(60.0, 0.6), ServiceLevel(80.0, 0.6), ServiceLevel(150.0, 0.65), ServiceLevel(150.0, 0.75)]


@pytest.mark.parametrize("level", ASKED, ids=str)
def test_same_answer_as_measuring_everything(level: ServiceLevel) -> None:
    found = choose_grid.compare(RECORDS, level, RECORD["pictures"])
    assert found["same_answer"]
    assert found == next(said for said in RECORD["levels"] if said["level"] == str(level))


def test_limits_that_refuse_much_save_much() -> None:
    """Two fifths of the time, as on the larger grids, unless four near ties must all be measured in full: 800 pictures take a minute,
    and screening one candidate on 100 of them a sixth of that with the start of its process."""
    parts = {str(level): choose_grid.compare(RECORDS, level, RECORD["pictures"])["part_of_exhaustive_time"] for level in ASKED}
    assert sum(part <= 0.40 for part in parts.values()) >= 3
    assert max(parts.values()) <= 0.75


def test_the_grid_is_what_it_should_be() -> None:
    """Sizes, decoder layers, few and many queries, two engines; and more of each costs or brings something."""
    made = list(RECORDS)
    assert {c.size_hw for c in made} == {(224, 224), (288, 288)}
    assert {c.decoder_layers for c in made} == {1, 2}
    assert {c.queries for c in made} >= {50, 100, 300}
    assert {c.engine for c in made} == {"torch", "onnxruntime"}
    ap = {
        (c.model, c.size_hw[0], c.decoder_layers, c.queries): steps["score"].ap or 0.0
        for c, steps in RECORDS.items()
        if c.engine == "torch"
    }
    for (model, side, layers, queries), value in ap.items():
        assert side == 224 or value > ap[model, 224, layers, queries]
        assert layers == 1 or value > ap[model, side, 1, queries]


@pytest.mark.slow
def test_what_goes_wrong_with_one_candidate_is_its_problem(tmp_path: Path) -> None:
    """Also what is no error of ours, such as torch's out of memory; the search goes on."""
    candidate = Candidate("pico", (288, 288), 2, 50, "torch", "float32")
    found = Broken(str(tmp_path), "valid", device="cpu").measure(candidate, "score")
    assert found.problem == "could not be measured: RuntimeError: can't allocate memory: you tried to allocate 9 TB"


class Broken(Trial):
    def measure_here(self, candidate: Candidate, step: str) -> Measured:
        raise RuntimeError("can't allocate memory:\nyou tried to allocate 9 TB")
