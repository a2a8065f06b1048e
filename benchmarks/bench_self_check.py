"""Does the benchmark report what really happened? The checks of tests/bench with real sleeps of 20 ms and more.

    .venv/bin/python benchmarks/bench_self_check.py

About two minutes, on a machine that has nothing else to do. The engine notes with a clock of its own how long each run really slept.
Exit status 1 if a check fails; the JSON has what the sensors of the benchmark saw.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "bench"))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from known_times import PICTURES, SlowEngine, detector
from measure import write

from rapidetr.bench.compare import compare_detectors
from rapidetr.bench.loads import LoadShape
from rapidetr.bench.runner import Plan, measure_row
from rapidetr.core.reports import BenchRow

WITHIN = 0.02


class Sleeper(SlowEngine):
    """Sleeps as told and notes for how long it really did."""

    def __init__(self, run_s: Any, prepare_s: float = 0.0) -> None:
        super().__init__(self.note, run_s, prepare_s)
        self.truth: list[float] = []  # seconds of every sleep: prepare, transfer, run, and again

    def note(self, seconds: float) -> None:
        began = time.perf_counter()
        time.sleep(seconds)
        self.truth.append(time.perf_counter() - began)


def measure(engine: SlowEngine, shape: LoadShape, rounds: int = 20) -> BenchRow:
    plan = Plan(rounds=rounds, seconds=120, forward_calls=0)
    return measure_row(detector(engine), "sleeper", PICTURES, shape, plan)


def check_jitter() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    engine = Sleeper(lambda: 0.020 + float(rng.exponential(0.005)))
    row = measure(engine, LoadShape(), rounds=40)
    truth = 1000 * np.array(engine.truth[2::3][-120:])
    errors = {f"p{p}": getattr(row.stages["run"], f"p{p}") / float(np.percentile(truth, p)) - 1 for p in (50, 90, 95)}
    ok = max(map(abs, errors.values())) <= WITHIN and abs(row.unaccounted or 0.0) <= WITHIN
    return {"ok": ok, **errors, "unaccounted": row.unaccounted, "noise": row.noise}


def check_stall() -> dict[str, Any]:
    rows = {}
    for name, shape in (("closed", LoadShape()), ("open", LoadShape(rate=15.0))):
        calls = count()
        rows[name] = measure(Sleeper(lambda calls=calls: 2.0 if next(calls) == 100 else 0.020), shape, rounds=100).total.p99
    return {"ok": rows["open"] > 500 > 100 > rows["closed"], "p99_ms": rows}


def check_prefetch() -> dict[str, Any]:
    times = {n: measure(Sleeper(lambda: 0.020, prepare_s=0.018), LoadShape(prefetch=n)).total.p50 for n in (0, 2)}
    return {"ok": times[2] < 0.75 * times[0], "p50_ms": times}


def check_streams() -> dict[str, Any]:
    rates = {n: measure(Sleeper(lambda: 0.020), LoadShape(streams=n)).images_per_second for n in (1, 2)}
    return {"ok": rates[2] > 1.6 * rates[1], "images_per_second": rates}


def check_verdicts() -> dict[str, Any]:
    found = {}
    for name, ours_s, expected in (("same", 0.020, "no difference"), ("slower", 0.024, "slower"), ("faster", 0.016, "faster")):
        both = detector(Sleeper(partial(float, ours_s))), detector(Sleeper(lambda: 0.020))
        middle = compare_detectors(both, (name, "old"), PICTURES, [LoadShape()], Plan()).differences[0]
        found[name] = {"ok": middle.verdict == expected, "ratio": middle.ratio, "interval": middle.interval, "verdict": middle.verdict}
    return {"ok": all(entry["ok"] for entry in found.values()), **found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out")
    args = parser.parse_args()
    checks = {}
    for check in (check_jitter, check_stall, check_prefetch, check_streams, check_verdicts):
        checks[check.__name__] = check()
        print(check.__name__, json.dumps(checks[check.__name__]), file=sys.stderr)
    ok = all(entry["ok"] for entry in checks.values())
    write("bench_self_check", {"ok": ok, "within": WITHIN, "checks": checks}, args.out)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
