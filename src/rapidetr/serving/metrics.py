"""What Prometheus reads: counts, histograms of stages and totals, and percentiles of the last minute."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from rapidetr.core.clock import STAGES

WINDOW_S, MOST = 60.0, 20_000  # how far back percentiles look, and how many requests they remember at most
PERCENTILES = (50, 95, 99)
SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
PATHS = ("/v1/predict", "/v1/model", "/healthz", "/readyz", "/metrics", "/openapi.json", "/")
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS")


@dataclass
class Window:
    """Percentiles of what was added within the last WINDOW_S seconds."""

    now: Callable[[], float] = time.monotonic
    values: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=MOST))

    def add(self, value: float) -> None:
        self.values.append((self.now(), value))

    def percentiles(self) -> dict[int, float]:
        """Empty where nothing was added."""
        since = self.now() - WINDOW_S
        recent = [value for when, value in list(self.values) if when >= since]
        return dict(zip(PERCENTILES, np.percentile(recent, PERCENTILES).tolist(), strict=True)) if recent else {}


class Metrics:
    """One registry of its own, so that a process may hold several servers. Stages are those of the benchmark, and "wait"."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.registry = registry = CollectorRegistry()
        self.window = Window(now)
        self.requests = Counter("rapidetr_requests", "Requests answered", ("path", "method", "status"), registry=registry)
        self.pictures = Counter("rapidetr_pictures", "Pictures answered", registry=registry)
        self.shed = Counter("rapidetr_shed", "Requests refused with 503", registry=registry)
        self.total = Histogram(
            "rapidetr_request_seconds", "From the headers of a prediction to its answer", buckets=SECONDS, registry=registry
        )
        self.stage = Histogram("rapidetr_stage_seconds", "Seconds of a picture by stage", ("stage",), buckets=SECONDS, registry=registry)
        self.batch = Histogram("rapidetr_batch_size", "Pictures run at once", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry)
        self.waiting = Gauge("rapidetr_queue_depth", "Pictures that wait for the engine", registry=registry)
        self.held = Gauge("rapidetr_pictures_held", "Pictures in the house", registry=registry)
        self.ready = Gauge("rapidetr_ready", "1 where /readyz answers 200", registry=registry)
        self.reloads = Counter("rapidetr_reloads", "Changes of the model", ("outcome",), registry=registry)
        self.model = Gauge("rapidetr_model", "1 for the model in use", ("model",), registry=registry)
        for stage in ("wait", *STAGES):
            self.stage.labels(stage)
        for outcome in ("done", "failed"):
            self.reloads.labels(outcome)
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """The percentiles, worked out when somebody asks."""
        told = GaugeMetricFamily("rapidetr_request_window_seconds", f"Total of the last {WINDOW_S:g} s", labels=("percentile",))
        for percent, value in self.window.percentiles().items():
            told.add_metric((f"p{percent}",), value)
        yield told

    def count(self, path: str, method: str, status: int) -> None:
        self.requests.labels(path if path in PATHS else "other", method if method in METHODS else "other", str(status)).inc()
        if status == 503 and path == "/v1/predict":
            self.shed.inc()

    def observe(self, stages_ms: Mapping[str, float]) -> None:
        """The stages of one picture."""
        self.pictures.inc()
        for stage, ms in stages_ms.items():
            self.stage.labels(stage).observe(ms / 1000)

    def observe_total(self, seconds: float) -> None:
        self.total.observe(seconds)
        self.window.add(seconds)

    def name_model(self, id: str) -> None:
        self.model.clear()
        self.model.labels(id).set(1)

    def text(self) -> bytes:
        return generate_latest(self.registry)
