"""The answer: one frozen record that goes to JSON and back, and a table to read."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from rapidetr.core.errors import ConfigError

COUNTS = ("right", "missed", "false", "confused")
WORST_IN_TEXT = 5


@dataclass(frozen=True, eq=False)
class Measure:
    """How good boxes (or masks) are. Fractions are 0..1; NaN where a class has no objects, and such classes enter no mean.

    metrics: COCO's twelve numbers · ap, ap50 float [K] · objects int64 [K], crowds left out · threshold, f1, precision,
    recall float [1 + K]: the best F1 of all classes together, then of each class (scores strictly above the threshold) ·
    curves float [K, 101]: precision at recall 0..1, IoU 0.5 · confusion int64 [K + 1, K + 1]: what it is, what it was
    found as, background last, at IoU 0.5 and scores above `shown_above` · counts int64 [images, 4]: right, missed, false,
    confused at the same threshold.
    """

    metrics: dict[str, float]
    ap: np.ndarray
    ap50: np.ndarray
    objects: np.ndarray
    threshold: np.ndarray
    f1: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    curves: np.ndarray
    shown_above: float
    confusion: np.ndarray
    counts: np.ndarray

    @property
    def image_f1(self) -> np.ndarray:
        """float [images]: F1 of each picture; 1 where there is nothing to find and nothing was found."""
        right, missed, false, confused = self.counts.T
        wrong = missed + false + 2 * confused  # a confused object is one missed and one false
        return np.where(right + wrong, 2 * right / np.maximum(2 * right + wrong, 1), 1.0)

    def worst_images(self) -> np.ndarray:
        """int64 [images]: indices, lowest F1 first, of equal F1 the picture with more mistakes."""
        return np.lexsort((-self.counts[:, 1:].sum(1), self.image_f1))

    def to_dict(self) -> dict[str, Any]:
        return {f.name: plain(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Measure:
        metrics = {k: math.nan if v is None else v for k, v in record["metrics"].items()}
        values: dict[str, Any] = {"metrics": metrics, "shown_above": record["shown_above"]}
        for name in [f.name for f in fields(cls) if f.name not in values]:
            values[name] = np.array(record[name], np.int64 if name in ("objects", "confusion", "counts") else np.float64)
        return cls(**values)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What one detector makes of one split. `max_dets` detections of each picture and class count, as in pycocotools."""

    class_names: tuple[str, ...]
    image_names: tuple[str, ...]
    max_dets: int
    boxes: Measure
    masks: Measure | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; None for NaN."""
        masks = None if self.masks is None else self.masks.to_dict()
        names = {"class_names": list(self.class_names), "image_names": list(self.image_names)}
        return {**names, "max_dets": self.max_dets, "boxes": self.boxes.to_dict(), "masks": masks, "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Evaluation:
        """Inverse of `to_dict`."""
        try:
            masks = None if record["masks"] is None else Measure.from_dict(record["masks"])
            names = tuple(record["class_names"]), tuple(record["image_names"])
            return cls(*names, record["max_dets"], Measure.from_dict(record["boxes"]), masks, tuple(record["notes"]))
        except (KeyError, TypeError, ValueError, AttributeError) as problem:
            raise ConfigError(f"evaluation: expected a record that Evaluation.to_dict wrote ({problem!r})") from None

    def to_text(self) -> str:
        """A table for the terminal: totals, classes, the worst pictures."""
        measures = {"boxes": self.boxes} | ({} if self.masks is None else {"masks": self.masks})
        total = f"{len(self.image_names)} images, {self.boxes.objects.sum()} objects, {len(self.class_names)} classes"
        lines = [f"{total}; at most {self.max_dets} detections of each image and class", *self.notes, ""]
        lines += _table([["", *measures]] + [[k, *(_number(m.metrics[k]) for m in measures.values())] for k in self.boxes.metrics])
        for kind, measure in measures.items():
            lines += ["", *_table(self._class_rows(kind, measure))]
        lines += ["", f"worst images (boxes, scores above {_number(self.boxes.shown_above)}):", *self._worst_lines()]
        return "\n".join(lines)

    def _class_rows(self, kind: str, m: Measure) -> list[list[str]]:
        rows = [[kind, "objects", "AP", "AP50", "best F1", "threshold", "precision", "recall"]]
        columns = [np.r_[m.metrics["AP"], m.ap], np.r_[m.metrics["AP50"], m.ap50], m.f1, m.threshold, m.precision, m.recall]
        names = ["all classes", *self.class_names]
        for i, (name, objects) in enumerate(zip(names, [m.objects.sum(), *m.objects], strict=True)):
            rows.append([name, str(objects), *(_number(column[i]) for column in columns)])
        return rows

    def _worst_lines(self) -> list[str]:
        worst = [i for i in self.boxes.worst_images()[:WORST_IN_TEXT] if self.boxes.counts[i, 1:].any()]
        told = [", ".join(f"{n} {what}" for n, what in zip(self.boxes.counts[i], COUNTS, strict=True)) for i in worst]
        return [f"  {self.image_names[i]}: {text}" for i, text in zip(worst, told, strict=True)] or ["  none has a mistake"]


def plain(value: Any) -> Any:
    """JSON types of numbers, arrays and dicts of them; what is no finite number becomes None."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray | list):
        return [plain(v) for v in (value.tolist() if isinstance(value, np.ndarray) else value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _table(rows: list[list[str]]) -> list[str]:
    """Left column to the left, all others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))) for row in rows]
