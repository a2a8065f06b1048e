"""A detector as the server uses it: each step of `Detector.predict` by itself, because each runs in another thread."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from rapidetr.core.clock import StageClock
from rapidetr.core.detections import Detections
from rapidetr.core.outputs import Batch, RawOutput
from rapidetr.pixels.decode import Encoded, ImageLimits, Picture, decode
from rapidetr.pixels.select import select
from rapidetr.runtime.artifact import VERDICT
from rapidetr.runtime.detector import Detector
from rapidetr.serving.batcher import Costs

LEAST_GAIN = 1.05  # of the rate, for which twice the batch is worth trying


@dataclass(frozen=True)
class Prepared:
    """A picture on its way to the engine: the input of the network, or on a device the picture that becomes it there."""

    content: Batch | Picture
    source: str | None
    clock: StageClock


@dataclass(frozen=True)
class Output:
    """What the network said of one picture, and the seconds of the batch that it was in."""

    raw: RawOutput
    batch: Batch  # of this picture alone
    seconds: dict[str, float]


@dataclass(frozen=True)
class Wanted:
    """What `select` keeps, and the form of masks in the answer: none, rle or polygons."""

    threshold: float = 0.5
    classes: tuple[str | int, ...] | None = None
    max_detections: int | None = None
    masks: str = "rle"


@dataclass(eq=False)
class Served:
    """Made by `serve_detector`. `costs` is what its batches take."""

    detector: Detector
    id: str
    artifact: Path | None
    loaded: str  # ISO 8601, UTC
    costs: Costs = field(default_factory=Costs)
    now: Callable[[], float] = time.perf_counter

    def prepare(self, encoded: Encoded, limits: ImageLimits) -> Prepared:
        """ImageError for what is no picture or too large. On a CPU the result is small, however large the picture was."""
        clock = StageClock(self.now)
        with clock.stage("decode"):
            picture = decode(encoded, limits)
        return self._prepared(picture, clock)

    def _prepared(self, picture: Picture, clock: StageClock) -> Prepared:
        on_cpu = self.detector.engine.device == "cpu"
        return Prepared(self._batch([picture], clock) if on_cpu else picture, picture.source, clock)

    def _batch(self, pictures: list[Picture], clock: StageClock) -> Batch:
        preprocessing = self.detector.preprocessing
        with clock.stage("prepare"):
            return self.detector.engine.prepare([p.pixels for p in pictures], preprocessing, preprocessing.predict_filter, None)

    def run(self, inputs: list[Prepared]) -> list[Output]:
        clock = StageClock(self.now)
        whole = self._join(inputs, clock)
        raw = self.detector.engine.run(whole.pixels, clock)
        alone = [replace(whole, pixels=None, geometries=(geometry,)) for geometry in whole.geometries]
        return [Output(part(raw, i), batch, clock.seconds) for i, batch in enumerate(alone)]

    def _join(self, inputs: list[Prepared], clock: StageClock) -> Batch:
        batches = [p.content for p in inputs if isinstance(p.content, Batch)]
        if not batches:
            return self._batch([p.content for p in inputs if isinstance(p.content, Picture)], clock)
        if len(batches) == 1:
            return batches[0]
        with clock.stage("prepare"):
            pixels = np.concatenate([b.pixels for b in batches])
        return replace(batches[0], pixels=pixels, geometries=tuple(g for b in batches for g in b.geometries))

    def select(self, prepared: Prepared, output: Output, wanted: Wanted, waited_s: float) -> Detections:
        """The detections of one picture, with its stage times."""
        clock, raw = prepared.clock, output.raw
        for stage, seconds in {"wait": waited_s, **output.seconds}.items():
            clock.seconds[stage] = clock.seconds.get(stage, 0.0) + seconds
        found = select(
            raw if wanted.masks != "none" else replace(raw, masks=None),
            output.batch.geometries,
            self.detector.labels,
            threshold=wanted.threshold,
            classes=wanted.classes,
            max_detections=wanted.max_detections,
            resize_filter=output.batch.filter,
            clock=clock,
        )[0]
        return replace(found, source=prepared.source, times_ms=clock.milliseconds())

    def warm_up(self, max_batch: int, budget_s: float | None) -> None:
        """Learn what batches of 1, 2, 4, ... take; ends where more gain nothing, or where even a lone batch leaves the budget."""
        height, width = self.detector.size_hw
        gray = Picture(np.full((height, width, 3), 127, np.uint8))
        size, rate = 1, 0.0
        while size <= max_batch:
            seconds = []
            for _ in range(3):  # the first one may compile or allocate
                inputs = [self._prepared(gray, StageClock(self.now)) for _ in range(size)]
                began = self.now()
                self.run(inputs)
                seconds.append(self.now() - began)
            best = max(min(seconds), 1e-9)
            if size > 1 and (size / best < LEAST_GAIN * rate or (budget_s is not None and best > budget_s)):
                break
            self.costs.learn(size, best)
            size, rate = 2 * size, size / best

    def card(self) -> dict[str, Any]:
        """What GET /v1/model tells."""
        d, e = self.detector, self.detector.engine
        return {
            "id": self.id,
            "name": d.config.name,
            "task": d.config.task,
            "size_hw": list(d.size_hw),
            "queries": getattr(e, "queries", None) or d.config.queries,
            "decoder_layers": getattr(e, "decoder_layers", None) or d.config.decoder_layers,
            "engine": e.name,
            "precision": e.precision,
            "device": e.device,
            "license": d.license,
            "artifact": None if self.artifact is None else self.artifact.name,
            "verdict": None if self.artifact is None else read_verdict(self.artifact / VERDICT),
            "labels": [
                {"class_id": i, "name": n, "dataset_id": k}
                for i, (n, k) in enumerate(zip(d.labels.names, d.labels.dataset_ids, strict=True))
            ],
            "notes": list(d.notes),
            "loaded": self.loaded,
        }


def part(raw: RawOutput, i: int) -> RawOutput:
    one = slice(i, i + 1)
    return RawOutput(raw.logits[one], raw.boxes[one], None if raw.masks is None else raw.masks[one])


def serve_detector(detector: Detector, artifact: Path | None = None) -> Served:
    """A Served that was not warmed up yet; its id is that of the artifact, or says what runs."""
    e, (height, width) = detector.engine, detector.size_hw
    id = artifact.name if artifact else f"{detector.config.name}-{height}x{width}-{e.name}-{e.precision}"
    return Served(detector, id, artifact, datetime.now(UTC).isoformat(timespec="seconds"))


def read_verdict(path: Path) -> dict[str, Any] | None:
    """The part of a verdict that people ask for: whether it was accepted, by what, and each check; None without a readable one."""
    with suppress(OSError, ValueError):
        record = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(record, dict):
            return {key: record.get(key) for key in ("accepted", "accuracy", "checks")}
    return None
