"""What a run leaves behind for people and programs: one line of JSON and one CSV row an epoch, and a summary."""

from __future__ import annotations

import csv
import io
import json
import math
from datetime import timedelta
from pathlib import Path
from typing import Any

from rapidetr.checkpoints.file import write_atomically
from rapidetr.evaluation.report import Evaluation

SHOWN = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")


def describe_score(found: Evaluation, masks: bool) -> dict[str, Any]:
    """AP (of masks for segmentation, then also `box_AP`) and the rest of COCO's figures, with AP by class; None where undefined."""
    measure = found.masks if masks and found.masks is not None else found.boxes
    figures = {name: _plain(measure.metrics[name]) for name in SHOWN}
    if measure is not found.boxes:
        figures["box_AP"] = _plain(found.boxes.metrics["AP"])
    figures["AP"] = figures["AP"] or 0.0
    return {**figures, "per_class": {name: _plain(ap) for name, ap in zip(found.class_names, measure.ap.tolist(), strict=True)}}


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def epoch_head(masks: bool) -> str:
    """The names above the lines of `epoch_line`."""
    parts = ("loss", "cls", "box", "giou", *(("mask", "dice") if masks else ()), "AP raw", "AP ema", "best")
    return f"{'epoch':>9}" + "".join(f"{part:>9}" for part in parts) + f"{'time':>10}"


def epoch_line(record: dict[str, Any], epochs: int, best: dict[str, Any], masks: bool) -> str:
    """One epoch's losses (those of the last decoder layer, before their weights), scores, and the best so far; * marks a new best."""
    losses = ("loss", "loss_ce", "loss_bbox", "loss_giou", *(("loss_mask_ce", "loss_mask_dice") if masks else ()))
    values = [record.get(name) for name in losses] + [(record.get(kind) or {}).get("AP") for kind in ("raw", "ema")]
    shown = "".join(f"{'-' if value is None else f'{value:.3f}':>9}" for value in values)
    mark = "*" if best.get("epoch") == record["epoch"] else " "
    best_AP = f"{best['AP']:.3f}{mark}" if values[-1] is not None or values[-2] is not None else "- "
    return f"{record['epoch'] + 1:>4}/{epochs:<4}{shown}{best_AP:>9}{timedelta(seconds=round(record['seconds']))!s:>10}"


def deltas(baseline: dict[str, Any], best: dict[str, Any]) -> dict[str, Any]:
    """Gain over the untouched starting model, AP and AP by class."""
    old, new = baseline["per_class"], best["per_class"]
    by_class = {n: new[n] - old[n] if new[n] is not None and old.get(n) is not None else None for n in new}
    return {"AP": best["AP"] - baseline["AP"], "per_class": by_class}


def write_json(path: Path, record: dict[str, Any]) -> None:
    write_atomically(path, lambda part: part.write_text(json.dumps(record, indent=1) + "\n", "utf-8"))


def write_metrics(folder: Path, history: list[dict[str, Any]]) -> None:
    """metrics.jsonl and metrics.csv of all epochs: written anew, so that a resumed run leaves no line twice."""
    lines = "".join(json.dumps(row) + "\n" for row in history)
    write_atomically(folder / "metrics.jsonl", lambda part: part.write_text(lines, "utf-8"))
    flat = [flatten(row) for row in history]
    names = list(dict.fromkeys(name for row in flat for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    write_atomically(folder / "metrics.csv", lambda part: part.write_text(text.getvalue(), "utf-8"))


def flatten(row: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"ema": {"AP": 1}} -> {"ema/AP": 1}."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        flat |= flatten(value, f"{prefix}{name}/") if isinstance(value, dict) else {prefix + name: value}
    return flat
