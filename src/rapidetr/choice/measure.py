"""The real measuring: each step in a fresh process, so that peak memory is that of one candidate and a crash costs one step."""

from __future__ import annotations

import math
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any, TypeVar

from rapidetr.bench.loads import LoadShape, spread_out
from rapidetr.bench.runner import Plan, measure_ap, measure_row
from rapidetr.choice.records import Candidate, Measured
from rapidetr.choice.reports import measured_row, noise_of
from rapidetr.core.errors import ConfigError, RapidetrError
from rapidetr.data.read import read_dataset
from rapidetr.data.records import Dataset
from rapidetr.runtime.detector import Detector
from rapidetr.runtime.load import load

TRIES = 2  # of a timing that the sensors call unusable
AP_SPREAD = 0.3  # standard deviation of the AP of single pictures, assumed until pairs of screening and full AP are there
SCREEN = Plan(rounds=7, seconds=10.0, warm_up_s=2.0, forward_calls=0)
T = TypeVar("T")


@dataclass(frozen=True)
class Trial:
    """What all candidates are measured with. `screen_pictures` of the split are scored in a screening, `time_pictures` are
    timed, spread over it; `rounds` of three calls make a p95, none begun after `seconds`.
    """

    data: str
    split: str
    dataset_sha256: str | None = None
    device: str = "auto"
    threads: int | None = None
    accept_license: str | None = None
    ap_of: str = "boxes"
    allow_noise: bool = False
    screen_pictures: int = 200
    time_pictures: int = 64
    rounds: int = 40
    seconds: float = 60.0

    def settings(self) -> dict[str, Any]:
        """What measurements must share to be compared."""
        names = (
            "dataset_sha256",
            "split",
            "device",
            "threads",
            "ap_of",
            "allow_noise",
            "screen_pictures",
            "time_pictures",
            "rounds",
            "seconds",
        )
        return {name: getattr(self, name) for name in names}

    def open(self, c: Candidate) -> Detector:
        """ConfigError where what was loaded is not what was asked for."""
        detector = load(
            c.model,
            device=self.device,
            threads=self.threads,
            dtype=c.precision,
            size_hw=c.size_hw,
            decoder_layers=c.decoder_layers,
            queries=c.queries,
            accept_license=self.accept_license,
        )
        if (detector.engine.name, detector.engine.precision) != (c.engine, c.precision):
            raise ConfigError(f"{c.model} runs on {detector.engine.name} {detector.engine.precision}; expected {c.engine} {c.precision}")
        return detector

    def measure(self, candidate: Candidate, step: str) -> Measured:
        """A step of the search in a fresh process; what goes wrong with one candidate becomes its `problem`."""
        began = time.monotonic()
        try:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                found = pool.submit(self.measure_here, candidate, step).result()
        except BrokenProcessPool:
            found = self._failed(candidate, step, "its process died (out of memory?)")
        except RapidetrError as problem:
            found = self._failed(candidate, step, str(problem))
        except Exception as problem:  # such as torch's own out of memory
            found = self._failed(candidate, step, f"{type(problem).__name__}: {' '.join(str(problem).split())[:300]}")
        return replace(found, seconds=time.monotonic() - began)

    @staticmethod
    def _failed(candidate: Candidate, step: str, why: str) -> Measured:
        return Measured(candidate, step if step != "score" else "full", problem=f"could not be measured: {why}")

    def measure_here(self, candidate: Candidate, step: str) -> Measured:
        """The same in this process; raises what goes wrong."""
        dataset, detector = read_dataset(self.data, self.split), self.open(candidate)
        if step == "score":
            return Measured(candidate, "full", ap=self._ap(detector, dataset), dataset_sha256=self.dataset_sha256)
        timed = self._time(detector, candidate, dataset, SCREEN if step == "screen" else Plan(self.rounds, self.seconds, forward_calls=0))
        if step == "time":
            return replace(timed, effort="time", dataset_sha256=self.dataset_sha256)
        seen = spread_out(dataset.images, self.screen_pictures)
        ap = self._ap(detector, replace(dataset, images=tuple(seen)))
        known = replace(timed, p95_interval_ms=None, p95_ms=None, problem=None) if timed.problem else timed
        return replace(known, effort="screen", ap=ap, ap_margin=margin_of(len(seen), len(dataset)), dataset_sha256=self.dataset_sha256)

    def _time(self, detector: Detector, candidate: Candidate, dataset: Dataset, plan: Plan) -> Measured:
        """Latency and memory; timed again where the machine was not quiet."""
        paths = [record.path for record in spread_out(dataset.images, self.time_pictures)]
        for _ in range(TRIES):
            row = measure_row(detector, candidate.model, paths, LoadShape(), plan)
            if row.usable or self.allow_noise:
                break
        problem = None if row.usable or self.allow_noise else noise_of(row)
        return replace(measured_row(row), candidate=candidate, problem=problem)

    def _ap(self, detector: Detector, dataset: Dataset) -> float | None:
        found = measure_ap(detector, dataset)[self.ap_of]
        return None if found is None else found["AP"]


def margin_of(seen: int, total: int) -> float:
    """AP of `seen` of `total` pictures lies this close to AP of all, 2.5 standard deviations; 0 for all of them."""
    return 2.5 * AP_SPREAD * math.sqrt(1 / seen - 1 / total)
