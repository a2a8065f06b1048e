"""Does the gate refuse what it must? The checks of tests/deployment/test_gate.py with real sleeps of 20 ms.

    .venv/bin/python benchmarks/gate_self_check.py

About two minutes, on a machine that has nothing else to do. A tiny random network computes each answer once and then sleeps 40 ms a
run; the candidate sleeps 20 ms more or less, or answers wrongly 20 ms sooner. Exit status 1 if a verdict is not the expected one, or
has not the expected reason; the JSON has all verdicts.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "golden"))
sys.path.insert(0, str(Path(__file__).resolve().parent))
import cases
from measure import write

from rapidetr.bench.runner import Plan
from rapidetr.core.labels import LabelSpace
from rapidetr.core.outputs import RawOutput
from rapidetr.deployment.gate import weigh
from rapidetr.deployment.verdict import Limits, Verdict
from rapidetr.runtime.detector import Detector

BASELINE_S, STEP_S = 0.040, 0.020
PLAN = Plan(rounds=40, seconds=120, forward_calls=0)  # 120 calls reach p95
Change = Callable[[RawOutput], RawOutput]


class Sleeper:
    """An engine that remembers its answers, really sleeps before it gives one, and spoils it as told."""

    def __init__(self, engine: Any, run_s: float, change: Change, channels: int) -> None:
        self.engine, self.run_s, self.change, self.channels, self.memory = engine, run_s, change, channels, {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def prepare(self, pictures: Any, *rest: Any) -> Any:
        return self.engine.prepare([picture[..., :: self.channels] for picture in pictures], *rest)

    def run(self, pixels: np.ndarray, clock: Any = None) -> RawOutput:
        key = pixels.tobytes()
        if key not in self.memory:
            self.memory[key] = self.change(self.engine.run(pixels))
        time.sleep(self.run_s)
        return self.memory[key]


@dataclass(frozen=True)
class Case:
    """A candidate, and what the gate must say of it: nothing refused, or one reason among those it gives."""

    refused: str  # name of the check that is not kept; "" where the candidate must be accepted
    run_s: float = BASELINE_S - STEP_S
    change: Change = lambda raw: raw
    channels: int = 1  # -1: colors in the wrong order


CASES = {
    "20 ms slower": Case("gain", BASELINE_S + STEP_S),
    "equal": Case("gain", BASELINE_S),
    "zeroed head": Case("agreement boxes", change=lambda raw: replace(raw, logits=np.zeros_like(raw.logits))),
    "swapped colors": Case("agreement boxes", channels=-1),
    "not finite": Case("finite", change=lambda raw: replace(raw, logits=raw.logits * np.nan)),
    "20 ms faster": Case(""),
}


def pictures() -> list[np.ndarray]:
    """Smooth colors, so that the order of channels means something."""
    noise = [np.random.default_rng(i).integers(0, 256, (4, 5, 3), np.uint8) for i in range(6)]
    return [np.asarray(Image.fromarray(n).resize((80, 64), Image.Resampling.BICUBIC)) for n in noise]


def on(detector: Detector, case: Case) -> Detector:
    asleep = copy.copy(detector)
    asleep.engine = Sleeper(detector.engine, case.run_s, case.change, case.channels)
    return asleep


def check(detector: Detector, case: Case) -> dict[str, Any]:
    baseline = on(detector, Case("", BASELINE_S))
    verdict: Verdict = weigh(baseline, on(detector, case), pictures(), Limits(), plan=PLAN)
    broken = [check.name for check in verdict.checks if not check.kept]
    ok = case.refused in broken if case.refused else verdict.accepted
    return {"ok": ok, "expected": case.refused or "accepted", "refused": broken, "verdict": verdict.to_dict()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out")
    args = parser.parse_args()
    detector = Detector.from_module(cases.network("tiny_det"), LabelSpace.contiguous("abcdef"))
    checks = {}
    for name, case in CASES.items():
        checks[name] = check(detector, case)
        print(name, json.dumps({key: checks[name][key] for key in ("ok", "expected", "refused")}), file=sys.stderr)
    ok = all(entry["ok"] for entry in checks.values())
    write("gate_self_check", {"ok": ok, "baseline_ms": 1000 * BASELINE_S, "step_ms": 1000 * STEP_S, "checks": checks}, args.out)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
