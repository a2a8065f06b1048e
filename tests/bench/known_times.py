"""A detector whose times are known: the real Detector around an engine that moves an injected clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from rapidetr.bench.runner import Instruments
from rapidetr.bench.sensors import CpuTimes, Watch
from rapidetr.checkpoints.file import Checkpoint
from rapidetr.core.clock import StageClock
from rapidetr.core.config import variant
from rapidetr.core.labels import LabelSpace
from rapidetr.core.outputs import Batch, Geometry, RawOutput
from rapidetr.core.preprocessing import Preprocessing
from rapidetr.runtime.detector import Detector


class Time:
    """A clock and a sleep that agree with each other."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def now(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.seconds += seconds


class SlowEngine:
    """Each run takes what `run_s()` says, preparing and transfer what they are told; `sleep` spends the time."""

    name, precision, device = "slow", "float32", "cpu"
    size_hw = (32, 32)
    decoder_layers = queries = None

    def __init__(self, sleep: Callable[[float], None], run_s: Callable[[], float], prepare_s: float = 0.0, transfer_s: float = 0.0) -> None:
        self.sleep, self.run_s, self.prepare_s, self.transfer_s = sleep, run_s, prepare_s, transfer_s

    def prepare(self, pictures, preprocessing, filter, geometries) -> Batch:
        self.sleep(self.prepare_s)
        places = tuple(Geometry(p.shape[:2]) for p in pictures)
        return Batch(np.zeros((len(pictures), 3, *self.size_hw), np.float32), places, filter)

    def run(self, pixels, clock: StageClock | None = None) -> RawOutput:
        clock = clock or StageClock()
        with clock.stage("transfer"):
            self.sleep(self.transfer_s)
        with clock.stage("run"):
            self.sleep(self.run_s())
        n = len(pixels)
        return RawOutput(np.full((n, 5, 4), 2.0, np.float32), np.full((n, 5, 4), 0.5, np.float32))


PICTURES = [np.full((20, 30, 3), i, np.uint8) for i in range(4)]


def detector(engine: SlowEngine) -> Detector:
    config = replace(variant("nano"), class_rows=4)
    checkpoint = Checkpoint({}, config, LabelSpace.contiguous(["a", "b", "c"]), Preprocessing.official(), "Apache-2.0")
    return Detector(engine, checkpoint)


def steady(time: Time, run_s: float | Callable[[], float] = 0.020, **stages: float) -> Detector:
    return detector(SlowEngine(time.sleep, run_s if callable(run_s) else lambda: run_s, **stages))


def jitter(seed: int, middle_s: float = 0.020) -> Callable[[], float]:
    rng = np.random.default_rng(seed)
    return lambda: middle_s * float(rng.lognormal(0, 0.2))


def watch(device: str, *, mhz: Iterator[float] | None = None, now: Callable[[], float]) -> Watch:
    """Sensors of a quiet machine; with `mhz`, of one whose clock is told."""
    quiet = CpuTimes(0.0, 0.0, 0.0, 0.0)
    read = (lambda: next(mhz)) if mhz else (lambda: 3000.0)
    return Watch(device, now=now, cpu_mhz=read, cpu_times=lambda: quiet, cpu_throttles=lambda: 0)


def instruments(time: Time, **sensors) -> Instruments:
    return Instruments(time.now, time.sleep, partial(watch, now=time.now, **sensors))
