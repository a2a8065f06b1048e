"""Grids of measurements that searches are tried on. They are synthetic: drawn once from the cost model below, not measured.

    python tests/choice/recorded_grids.py      writes recorded_grids.json again, byte for byte

Cost model (54 configurations, 2000 pictures, one grid a seed): p50 = 11 ms + gigamacs / (280 a second, ±4 % a model and size), ±1 %
a run; p95 = p50 * (1.05 to 1.15), interval ±1 to 4 %; AP falls with the input size, the layers left out and the queries, ±0.002.
A screening sees 200 pictures and 21 calls: its AP is off by an amount common to all (sd 0.012), one of the model (sd 0.004) and one
of its own (sd 0.0025). Seconds: 6 for process and weights, then pictures and calls at p50, and the warm-up.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from rapidetr.choice.records import Candidate, Measured
from rapidetr.choice.search import AnyGraph, grid
from rapidetr.core.config import VARIANTS
from rapidetr.core.work import gigamacs

FILE = Path(__file__).with_name("recorded_grids.json")
SEEDS = range(5)
AP = {"nano": 0.480, "small": 0.528, "medium": 0.544}
PICTURES, SCREENED, CALLS, SCREEN_CALLS, START_S = 2000, 200, 200, 21, 6.0
CANDIDATES = grid(
    {name: VARIANTS[name] for name in AP},
    [AnyGraph("torch")],
    sizes=[(384, 384), (512, 512), (576, 576)],
    decoder_layers=None,
    queries=[100, 300],
)


def draw(seed: int) -> list[dict[str, Any]]:
    """[{"full": [...], "screen": [...]}] in the order of CANDIDATES; the numbers that `measured` reads."""
    rng = np.random.default_rng(seed)
    pace = {key: rng.normal(1, 0.04) for key in sorted({(c.model, c.size_hw) for c in CANDIDATES})}
    common, of_model = rng.normal(0, 0.012), {name: rng.normal(0, 0.004) for name in AP}
    return [_draw_one(c, pace[c.model, c.size_hw], common + of_model[c.model], rng) for c in CANDIDATES]


def _draw_one(c: Candidate, pace: float, shift: float, rng: np.random.Generator) -> dict[str, Any]:
    config = VARIANTS[c.model]
    work = gigamacs(config, c.size_hw, c.decoder_layers, c.queries)
    p50 = (11 + 1000 * work / 280 * pace) * rng.normal(1, 0.01)
    p95 = p50 * rng.uniform(1.05, 1.15)
    low, high = p95 * (1 - rng.uniform(0.01, 0.04)), p95 * (1 + rng.uniform(0.01, 0.04))
    shrunk = np.log2(config.size_hw[0] / c.size_hw[0])
    ap = AP[c.model] - (0.09 * shrunk if shrunk > 0 else -0.02 * shrunk) - 0.011 * (config.decoder_layers - c.decoder_layers) ** 1.4
    ap += rng.normal(0, 0.002) - 0.004 * (c.queries == 100)
    memory = 420 + 9 * work + 0.4 * c.size_hw[0]
    again = p50 * rng.normal(1, 0.015)
    seen = ap + shift + rng.normal(0, 0.0025)
    return {
        "full": [round(float(v), 4) for v in (p50, p95, low, high, ap, memory)],
        "screen": [round(float(v), 4) for v in (again, again * 0.975, seen)],
    }


def measured(candidate: Candidate, step: str, record: dict[str, Any]) -> Measured:
    """What the measuring function would give for a step of the search, or for "full": time and score in one process."""
    work = gigamacs(VARIANTS[candidate.model], candidate.size_hw, candidate.decoder_layers, candidate.queries)
    p50, p95, low, high, ap, memory = record["full"]
    if step == "screen":
        p50, low, ap = record["screen"]
        return Measured(
            candidate, "screen", p50, None, (low, None), ap, MARGIN, memory, work, START_S + 1.5 + (SCREENED + SCREEN_CALLS) * p50 / 1000
        )
    seconds = {"time": 5 + CALLS * p50 / 1000, "score": PICTURES * p50 / 1000, "full": 5 + (CALLS + PICTURES) * p50 / 1000}[step]
    if step == "score":
        return Measured(candidate, "full", ap=ap, seconds=START_S + seconds)
    return Measured(candidate, "full", p50, p95, (low, high), ap if step == "full" else None, 0.0, memory, work, START_S + seconds)


MARGIN = float(np.round(2.5 * 0.3 * np.sqrt(1 / SCREENED - 1 / PICTURES), 4))


if __name__ == "__main__":
    rows = ",\n".join(json.dumps([draw(seed)], separators=(",", ":"))[1:-1] for seed in SEEDS)
    FILE.write_text(f"[\n{rows}\n]\n")
