"""How work arrives: one call after another, at a given rate, over several streams, with pictures loaded ahead or not.

Everything here times `Detector.predict` or `predict_iter` as users call them, and takes its clock and its sleep from outside.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, count, islice
from typing import Any, TypeVar

import numpy as np

from rapidetr.core.clock import StageClock
from rapidetr.core.detections import Detections
from rapidetr.core.errors import ConfigError
from rapidetr.runtime.detector import Detector

Now = Callable[[], float]
T = TypeVar("T")
LOADING = ("read", "decode", "prepare")  # what a prefetching pool does beside the network


@dataclass(frozen=True)
class LoadShape:
    """One way to ask. With a `rate` (pictures a second) calls arrive at random moments, whether or not the last one is done."""

    batch: int = 1
    streams: int = 1
    prefetch: int = 0
    rate: float | None = None
    threads: int | None = None  # of torch on the CPU, for this setting; None: as they are

    def __post_init__(self) -> None:
        if min(self.batch, self.streams, self.threads or 1) < 1 or self.prefetch < 0 or (self.rate is not None and self.rate <= 0):
            raise ConfigError(f"{self}; expected batch, streams and threads of at least 1, prefetch of at least 0, a rate above 0")
        if self.rate is not None and self.prefetch:
            raise ConfigError(f"{self}: pictures that have not arrived cannot be loaded ahead; leave out rate or prefetch")


@dataclass(frozen=True)
class Call:
    """One call: seconds from when it was meant to start until its detections were there, and by stage."""

    total_s: float
    stages_s: dict[str, float]


@dataclass(frozen=True)
class Load:
    """What is asked, and the tools: the first `batch` pictures of an endless cycle go with call 0, and so on.

    `cold_files` asks the system to forget each picture file before it is read.
    """

    detector: Detector
    pictures: Sequence[Any]
    shape: LoadShape
    threshold: float = 0.5
    cold_files: bool = False
    now: Now = time.perf_counter
    sleep: Callable[[float], None] = time.sleep
    between: Callable[[], object] = lambda: None  # called by the first stream between its calls, outside what is timed

    def sources(self, number: int) -> list[Any]:
        first = number * self.shape.batch
        chosen = [self.pictures[i % len(self.pictures)] for i in range(first, first + self.shape.batch)]
        if self.cold_files:
            forget(chosen)
        return chosen

    def call(self, number: int) -> Call:
        """Call `number`, synchronous: the very `predict`, with a clock of its own."""
        sources, clock = self.sources(number), StageClock(self.now)
        began = self.now()
        found = self.detector.predict(sources, self.threshold, batch_size=self.shape.batch, clock=clock)
        total = self.now() - began
        check(found)
        return Call(total, clock.seconds)

    def run(self, calls: int, seconds: float, *, warm_up: int = 0, seed: int = 0) -> tuple[list[Call], float]:
        """(calls in the order in which they ended, seconds from the first start to the last end).

        At least one call of each stream, at most `calls`, none begun later than `seconds` after the start. `warm_up` calls
        of each prefetching stream go before.
        """
        if self.shape.rate is not None:
            return self.open_loop(arrivals(calls, self.shape.rate / self.shape.batch, seed), seconds)
        if self.shape.prefetch:
            return self.on_streams(lambda stream, share: self.prefetched(stream, share, seconds, warm_up), calls)
        return self.on_streams(lambda stream, share: self.one_after_another(stream, share, seconds), calls)

    def on_streams(self, work: Callable[[int, int], Iterator[tuple[float, float, Call]]], calls: int) -> tuple[list[Call], float]:
        """What `work(stream, its calls)` does on every stream at once; threads share the detector."""
        share = -(-calls // self.shape.streams)
        done = in_threads(lambda stream: list(work(stream, share)), self.shape.streams)
        ended = sorted(chain.from_iterable(done), key=lambda entry: entry[1])
        return [call for _, _, call in ended], ended[-1][1] - min(began for began, _, _ in ended)

    def one_after_another(self, stream: int, calls: int, seconds: float) -> Iterator[tuple[float, float, Call]]:
        start = self.now()
        for number in range(stream, stream + calls * self.shape.streams, self.shape.streams):
            began = self.now()
            if began - start > seconds:
                return
            call = self.call(number)
            yield began, began + call.total_s, call
            if stream == 0:
                self.between()

    def prefetched(self, stream: int, calls: int, seconds: float, warm_up: int) -> Iterator[tuple[float, float, Call]]:
        """`predict_iter`; a call is from asking for a batch to having it. "wait" is the part in which nothing was ready.

        Pool threads write to the same clock, so reading, decoding and preparing belong to a later batch than the rest:
        their sums are right, their percentiles are smoothed.
        """
        clock = StageClock(self.now)
        numbers = range(stream, stream + (calls + warm_up) * self.shape.streams, self.shape.streams)
        endless = chain.from_iterable(map(self.sources, numbers))
        batches = self.detector.predict_iter(
            endless, self.threshold, batch_size=self.shape.batch, prefetch=self.shape.prefetch, on_error="raise", clock=clock
        )
        for batch in islice(batches, warm_up):
            check(batch)
        start = began = self.now()
        before = dict(clock.seconds)
        for batch in batches:
            ended, after = self.now(), dict(clock.seconds)
            spent = {stage: s - before.get(stage, 0.0) for stage, s in after.items()}
            waited = ended - began - sum(s for stage, s in spent.items() if stage not in LOADING)
            check(batch)
            if stream == 0:
                self.between()
            yield began, ended, Call(ended - began, {**spent, "wait": max(waited, 0.0)})
            if self.now() - start > seconds:
                return
            began, before = self.now(), after

    def open_loop(self, due_s: np.ndarray, seconds: float) -> tuple[list[Call], float]:
        """Each call as soon as it is due and a stream is free; counted from when it was due, so that no stall is hidden."""
        start, waiting, lock = self.now(), iter(enumerate(due_s[due_s <= max(seconds, due_s[0])].tolist())), threading.Lock()

        def serve(stream: int) -> list[tuple[float, Call]]:
            done: list[tuple[float, Call]] = []
            while True:
                with lock:
                    number, due = next(waiting, (-1, 0.0))
                if number < 0:
                    return done
                if (early := start + due - self.now()) > 0:
                    self.sleep(early)
                late = max(self.now() - start - due, 0.0)
                call = self.call(number)
                done.append((start + due + late + call.total_s, Call(late + call.total_s, {**call.stages_s, "wait": late})))
                if stream == 0:
                    self.between()

        ended = sorted(chain.from_iterable(in_threads(serve, self.shape.streams)), key=lambda entry: entry[0])
        return [call for _, call in ended], ended[-1][0] - start


def arrivals(calls: int, rate: float, seed: int) -> np.ndarray:
    """float64 [calls]: rising moments in seconds at which independent users ask (Poisson), scaled to exactly `rate` a second."""
    moments: np.ndarray = np.cumsum(np.random.default_rng(seed).exponential(1.0, calls))
    return moments * (calls / rate / moments[-1])


def warm_up(load: Load, *, seconds: float, least: int = 3, tolerance: float = 0.05) -> tuple[int, bool]:
    """(calls made, whether they settled): until the medians of the last and the previous `least` calls differ by less than
    `tolerance`, or the time is up."""
    start, totals = load.now(), list[float]()
    for number in count():
        totals.append(load.call(number).total_s)
        recent = [float(np.median(part)) for part in (totals[-least:], totals[-2 * least : -least]) if part]
        if len(totals) >= 2 * least and abs(recent[0] - recent[1]) <= tolerance * recent[1]:
            return len(totals), True
        if load.now() - start > seconds and len(totals) >= 2:
            return len(totals), False
    raise AssertionError


def spread_out(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of them, at even distances."""
    return [items[i * len(items) // min(most, len(items))] for i in range(min(most, len(items)))]


def in_threads(work: Callable[[int], Any], streams: int) -> list[Any]:
    """What `work` gives for each stream; one stream runs in this thread."""
    if streams == 1:
        return [work(0)]
    with ThreadPoolExecutor(streams, "rapidetr-stream") as pool:
        return list(pool.map(work, range(streams)))


def check(found: Sequence[Detections]) -> None:
    """ConfigError unless every number that came out is finite; a fast wrong answer is no measurement."""
    for d in found:
        if not (np.isfinite(d.boxes_xyxy_px).all() and np.isfinite(d.scores).all()):
            raise ConfigError(f"{d.source or 'a picture'}: detections are not finite; try float32, or check the weights")


def forget(sources: Sequence[Any]) -> None:
    """Ask the system to drop cached pages of these files; ConfigError where it cannot be asked."""
    if not hasattr(os, "posix_fadvise"):
        raise ConfigError("this system cannot be asked to forget files; measure with a warm file cache")
    for source in sources:
        with suppress(TypeError), open(source, "rb") as file:  # what is not a path is not in a file cache
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
