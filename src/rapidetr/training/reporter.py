"""Follows a run: pictures of augmented batches, curves while it goes on, loggers, the report at its end.

None of it may change or end a run: random generators are as before afterwards, and what goes wrong is told once and left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rapidetr.checkpoints.file import Checkpoint
from rapidetr.core.detections import Detections
from rapidetr.core.masks import Masks
from rapidetr.data.batches import TrainBatch, seeded
from rapidetr.data.records import Dataset
from rapidetr.draw.boxes import draw_detections
from rapidetr.draw.charts import load_library, to_png
from rapidetr.draw.evaluation import to_jpeg
from rapidetr.draw.sheet import make_sheet
from rapidetr.runtime.detector import Detector
from rapidetr.training.loggers import Logger, open_loggers
from rapidetr.training.report import curves, run_report, write_files
from rapidetr.training.state import Progress

PICTURED_STEPS = 3  # the first steps, whose batches are drawn
PICTURED = 16  # pictures of a step
CHARTS_EVERY_S = 30.0  # of training: drawing takes about one second


@dataclass
class Reporter:
    """Follows one run: `begin`, `batch` in the first steps, `epoch` after each, `end` with the finished record, `close` always."""

    folder: Path
    start: Checkpoint
    plan: dict[str, Any]
    say: Callable[[str], None]
    drawing: bool = True
    kinds: tuple[str, ...] = ()
    loggers: list[Logger] = field(default_factory=list)
    drawn_at: float = 0.0
    failed: set[str] = field(default_factory=set)

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Keeps the random generators, and the run going; tells the first failure of each kind."""
        try:
            with seeded(0):
                yield
        except Exception as problem:
            if what not in self.failed:
                self.say(f"{what} left out: {problem}")
            self.failed.add(what)

    def begin(self, progress: Progress) -> None:
        """Loggers get what has happened so far; a missing chart library is told now."""
        if self.drawing:
            with self.attempt("charts"):
                load_library()
        with self.attempt("loggers"):
            self.loggers = open_loggers(self.kinds, self.folder, self.plan, self._rows(progress))

    def batch(self, step: int, batches: Sequence[TrainBatch]) -> None:
        """Draws the pictures of one of the first steps as they go into the network, before a step's own size."""
        if self.drawing and step < PICTURED_STEPS:
            with self.attempt("pictures of batches"):
                content = draw_batch(batches[0], self.start)
                write_files(self.folder, {f"batches/step-{step}.jpg": content})

    def epoch(self, progress: Progress) -> None:
        """Loggers get the last row; charts are drawn, but not in every short epoch."""
        with self.attempt("loggers"):
            for logger in self.loggers:
                logger.log(progress.history[-1])
        if progress.seconds - self.drawn_at >= CHARTS_EVERY_S:
            self.drawn_at = progress.seconds
            self._draw_curves(progress.history, progress.baseline)

    def end(self, record: dict[str, Any], valid: Dataset | None, open_best: Callable[[], Detector]) -> None:
        """The charts, and the report of the run with its best weights looked at closely."""
        self._draw_curves(record["history"], record["baseline"])
        if self.drawing and "charts" not in self.failed:
            with self.attempt("report"):
                write_files(self.folder, run_report(self.folder, record, valid, open_best))

    def close(self) -> None:
        with self.attempt("loggers"):
            for logger in self.loggers:
                logger.close()

    def _draw_curves(self, history: list[dict[str, Any]], baseline: dict[str, Any]) -> None:
        if self.drawing and "charts" not in self.failed:
            with self.attempt("charts"):
                write_files(self.folder, {f"{name}.png": to_png(chart) for name, chart in curves(history, baseline).items()})

    def _rows(self, progress: Progress) -> list[dict[str, Any]]:
        """What loggers show: the untouched start at step 0, then every epoch."""
        baseline = {name: value for name, value in progress.baseline.items() if name != "per_class"}
        return [*([{"step": 0, "baseline": baseline}] if baseline else []), *progress.history]


def draw_batch(batch: TrainBatch, start: Checkpoint) -> bytes:
    """A JPEG file: the augmented pictures of a batch in a grid, with their objects."""
    mean, std = (np.array(v, np.float32).reshape(-1, 1, 1) for v in (start.preprocessing.mean, start.preprocessing.std))
    drawn = []
    for pixels, truth in list(zip(batch.pixels.cpu().numpy(), batch.targets, strict=True))[:PICTURED]:
        shown = np.clip(np.rint((pixels * std + mean) * 255), 0, 255).astype(np.uint8).transpose(1, 2, 0)
        hw: tuple[int, int] = shown.shape[:2]
        center, half = truth.boxes[:, :2].numpy(), truth.boxes[:, 2:].numpy() / 2
        boxes = np.concatenate([center - half, center + half], 1) * np.array([hw[1], hw[0]] * 2, np.float32)
        masks = None if truth.masks is None else Masks.from_dense(truth.masks.numpy())
        scores = np.ones(len(boxes), np.float32)
        found = Detections(boxes.astype(np.float32), scores, truth.labels.numpy(), start.labels, hw, masks)
        drawn.append(draw_detections(found, np.ascontiguousarray(shown)))
    return to_jpeg(make_sheet(drawn))
