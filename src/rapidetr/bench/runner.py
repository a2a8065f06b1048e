"""From a detector and pictures to rows that can be believed: warm up, watch the machine, time, check, cool down."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from rapidetr.bench.loads import Call, Load, LoadShape, warm_up
from rapidetr.bench.memory import cuda_of, forget_peaks, peak_device_mb, peak_process_mb
from rapidetr.bench.sensors import Watch
from rapidetr.core.clock import STAGES, StageClock
from rapidetr.core.errors import ConfigError
from rapidetr.core.reports import SCHEMA, BenchReport, BenchRow, Latency
from rapidetr.core.statistics import least_samples
from rapidetr.core.work import gigamacs
from rapidetr.data.records import Dataset
from rapidetr.evaluation.evaluate import evaluate
from rapidetr.evaluation.report import plain
from rapidetr.runtime.detector import Detector
from rapidetr.runtime.environment import describe_environment

CALLS = 3  # of a round: calls that follow each other are alike, so rounds are what intervals are drawn from
UNACCOUNTED = 0.02  # of the total may lie outside all stages
SAMPLE_EVERY_S = 0.25


@dataclass(frozen=True)
class Plan:
    """How much to measure. The defaults reach p95 (59 calls) where a call takes less than `seconds` / 59."""

    rounds: int = 20  # of CALLS calls, for each setting
    seconds: float = 40.0  # no call of a setting begins later
    warm_up_s: float = 5.0
    cool_down_s: float = 2.0
    forward_calls: int = 20  # of the engine alone; 0: leave out
    threshold: float = 0.5
    cold_files: bool = False
    percentile: float | None = None  # refuse to begin with too few rounds for it
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.seconds <= 0 or min(self.warm_up_s, self.cool_down_s, self.forward_calls) < 0:
            raise ConfigError(f"{self}; expected at least one round, some seconds, and nothing below 0")
        if self.percentile is not None and self.rounds * CALLS < (least := least_samples(self.percentile)):
            raise ConfigError(
                f"p{self.percentile:g} of {self.rounds * CALLS} runs says nothing; expected at least {least}: {-(-least // CALLS)} rounds"
            )


@dataclass(frozen=True)
class Instruments:
    """Clock, pause and sensors; tests bring their own."""

    now: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], None] = time.sleep
    watch: Callable[[str], Watch] = Watch

    def on(self, device: str) -> Callable[[], float]:
        """The clock; on CUDA it first waits for all work, so that every stage ends when its work does."""
        cuda = cuda_of(device)
        if cuda is None:
            return self.now

        def now() -> float:
            cuda.synchronize(device)
            return self.now()

        return now


def measure_rows(
    detector: Detector,
    artifact: str,
    pictures: Sequence[Any],
    shapes: Sequence[LoadShape],
    plan: Plan,
    *,
    cold_start_s: float | None = None,
    instruments: Instruments | None = None,
) -> Iterator[BenchRow]:
    """One row for each shape, with a pause between them. ImageError, and ConfigError for outputs that are not finite."""
    if not pictures:
        raise ConfigError("there are no pictures; expected at least one to measure with")
    tools = instruments or Instruments()
    for i, shape in enumerate(shapes):
        if i:
            tools.sleep(plan.cool_down_s)
        yield measure_row(detector, artifact, pictures, shape, plan, cold_start_s=cold_start_s, instruments=tools)


def measure_row(
    detector: Detector,
    artifact: str,
    pictures: Sequence[Any],
    shape: LoadShape,
    plan: Plan,
    *,
    cold_start_s: float | None = None,
    instruments: Instruments | None = None,
) -> BenchRow:
    """One setting: warm-up, the calls of all rounds under watch, then the engine alone."""
    tools = instruments or Instruments()
    engine, now, watch = detector.engine, tools.on(detector.engine.device), tools.watch(detector.engine.device)
    load = Load(detector, pictures, shape, plan.threshold, plan.cold_files, now, tools.sleep, lambda: sample(watch, tools.now))
    set_threads(shape.threads)
    forget_peaks(engine.device)
    warmed, settled = warm_up(load, seconds=plan.warm_up_s)
    watch.sample()
    calls, wall_s = load.run(plan.rounds * CALLS, plan.seconds, warm_up=2, seed=plan.seed)
    watch.sample()
    noise = watch.judge()
    forward = time_forward(load, plan.forward_calls) if plan.forward_calls else None
    rate = len(calls) * shape.batch / wall_s
    notes: tuple[str, ...] = () if settled else (f"warm-up did not settle in {warmed} calls",)
    unaccounted = None if shape.prefetch else 1 - sum(sum(c.stages_s.values()) for c in calls) / sum(c.total_s for c in calls)
    notes += observe(shape, plan, len(calls), rate, unaccounted)
    config = detector.config
    # None: all that the network has
    layers = getattr(engine, "decoder_layers", None) or config.decoder_layers
    queries = getattr(engine, "queries", None) or config.queries
    return BenchRow(
        model=config.name,
        artifact=artifact,
        size_hw=detector.size_hw,
        decoder_layers=layers,
        queries=queries,
        gmacs=gigamacs(config, detector.size_hw, layers, queries),
        engine=engine.name,
        precision=engine.precision,
        device=engine.device,
        threads=threads(),
        batch=shape.batch,
        streams=shape.streams,
        prefetch=shape.prefetch,
        load="closed" if shape.rate is None else "open",
        rate=shape.rate,
        file_cache="cold" if plan.cold_files else "warm",
        stages=by_stage(calls, plan.seed),
        unaccounted=unaccounted,
        images_per_second=rate,
        totals_ms=tuple(map(tuple, rounds_of([1000 * c.total_s for c in calls]).tolist())),
        forward_only=forward,
        cold_start_s=cold_start_s,
        compile_s=float(getattr(engine, "compile_s", 0.0)),  # engines that compile say so
        peak_process_mb=peak_process_mb(),
        peak_device_mb=peak_device_mb(engine.device),
        noise=noise.to_dict(),
        usable=noise.usable,
        reasons=(*noise.reasons, *notes),
    )


def assemble(
    rows: Sequence[BenchRow],
    *,
    command: str,
    dataset: dict[str, Any],
    artifact_sha256: str | None = None,
    ap: dict[str, Any] | None = None,
    published: dict[str, Any] | None = None,
) -> BenchReport:
    """The report of `rows`, with this machine and this moment."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    environment = describe_environment(rows[0].device if rows else "cpu")
    return BenchReport(SCHEMA, created, command, environment, artifact_sha256, dataset, ap, published, tuple(rows))


def sample(watch: Watch, now: Callable[[], float]) -> None:
    """One more look at the machine, unless the last one is fresh."""
    if not watch.samples or now() - watch.samples[-1].at_s >= SAMPLE_EVERY_S:
        watch.sample()


def observe(shape: LoadShape, plan: Plan, calls: int, rate: float, unaccounted: float | None) -> tuple[str, ...]:
    """What a reader must know about a row, besides noise."""
    found = []
    if calls < plan.rounds * CALLS:
        found.append(f"time was up after {calls} of {plan.rounds * CALLS} calls")
    if unaccounted is not None and abs(unaccounted) > UNACCOUNTED:
        found.append(f"{unaccounted:.1%} of the total lies outside all stages (at most {UNACCOUNTED:.0%} expected)")
    if shape.rate is not None and rate < 0.9 * shape.rate:
        found.append(f"only {rate:.2f} of {shape.rate:g} pictures a second were done: waiting grows with the length of the run")
    return tuple(found)


def by_stage(calls: Sequence[Call], seed: int) -> dict[str, Latency]:
    """Latency of every stage that ran, in the order of a prediction, then "total"; a stage that a call lacks took 0 ms."""
    seen = {name for call in calls for name in call.stages_s}
    stages = {name: [1000 * c.stages_s.get(name, 0.0) for c in calls] for name in ("wait", *STAGES) if name in seen}
    stages["total"] = [1000 * c.total_s for c in calls]
    return {name: Latency.measure(rounds_of(ms), seed=seed) for name, ms in stages.items()}


def rounds_of(values: Sequence[float]) -> np.ndarray:
    """[rounds, CALLS], the last calls of an unfinished round left out; one round of each call where there are fewer than CALLS."""
    whole = len(values) // CALLS * CALLS
    return np.reshape(values[:whole], (-1, CALLS)) if whole else np.reshape(values, (-1, 1))


def time_forward(load: Load, calls: int) -> Latency:
    """Stage "run" of the engine alone, over and over on the same prepared batch of noise: its work depends on no content."""
    detector = load.detector
    noise = np.random.default_rng(0).integers(0, 256, (*detector.size_hw, detector.config.in_channels), np.uint8)
    arrays = [noise] * load.shape.batch
    batch = detector.engine.prepare(arrays, detector.preprocessing, detector.preprocessing.predict_filter, None)
    times = []
    for _ in range(calls):
        clock = StageClock(load.now)
        detector.engine.run(batch.pixels, clock)
        times.append(clock.milliseconds()["run"])
    return Latency.measure(times)


def set_threads(count: int | None) -> None:
    """Threads of one forward on the CPU, for this process from now on; nothing for None or without torch."""
    if count is not None and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)


def threads() -> int:
    """Threads of one forward on the CPU; 0 where no torch is loaded."""
    return int(sys.modules["torch"].get_num_threads()) if "torch" in sys.modules else 0


def measure_ap(detector: Detector, dataset: Dataset, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """COCO's numbers (0..1, None where undefined) of the very path that is timed: the filter of `predict`, batches of 1."""
    found = evaluate(detector, dataset, batch_size=1, resize="predict", progress=progress)
    masks = None if found.masks is None else plain(found.masks.metrics)
    record = {"split": dataset.split, "pictures": len(dataset), "resize": "predict", "max_dets": found.max_dets}
    return {**record, "boxes": plain(found.boxes.metrics), "masks": masks}
