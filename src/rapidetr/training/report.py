"""What a run, or an evaluation, looks like: charts, pictures and one self-contained page whose numbers are those of its record."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapidetr.checkpoints.file import write_atomically
from rapidetr.data.records import Dataset
from rapidetr.draw.charts import lines, to_png, to_svg
from rapidetr.draw.evaluation import draw_pair, evaluation_charts, evaluation_sections, number
from rapidetr.draw.page import Section, render_page
from rapidetr.evaluation.evaluate import evaluate
from rapidetr.evaluation.report import Evaluation
from rapidetr.evaluation.worst import worst_pairs
from rapidetr.runtime.detector import Detector
from rapidetr.training.recipe import Recipe
from rapidetr.training.records import SHOWN, flatten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEM = 40  # characters of a picture's name in the name of another file: at most 160 bytes
Files = dict[str, bytes]  # by path relative to a folder


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Each file whole or not at all."""
    for name, content in files.items():
        write_atomically(folder / name, partial(Path.write_bytes, data=content))


def curves(history: Sequence[dict[str, Any]], baseline: dict[str, Any]) -> dict[str, Figure]:
    """Losses by epoch; AP by epoch where it was scored, the untouched start as epoch 0."""
    parts = ("loss_ce", "loss_bbox", "loss_giou", "loss_mask_ce", "loss_mask_dice")
    known = {name: points for name in ("loss", *parts) if (points := _series(history, name))[0]}
    charts = {
        "loss": lines({"loss": known.pop("loss", ([], []))}, title="Loss (mean of an epoch)", x="epoch", y="loss"),
        "loss-parts": lines(known, title="Its parts (last decoder layer, before their weights)", x="epoch", y="loss"),
    }
    scores = {}
    for name in ("raw/AP", "ema/AP", "raw/AP50", "ema/AP50"):
        xs, ys = _series(history, name)
        start = baseline.get(name.partition("/")[2])
        if xs:
            scores[name] = (xs, ys) if start is None else ([0.0, *xs], [start, *ys])
    return charts | ({"ap": lines(scores, title="Average precision on the scored split", x="epoch", y="AP")} if scores else {})


def _series(history: Sequence[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Epochs, counted from 1, and values of a figure of `flatten`, where it is known."""
    known = [(float(row["epoch"] + 1), value) for row in history if (value := flatten(row).get(name)) is not None]
    return [x for x, _ in known], [y for _, y in known]


def run_report(folder: Path, record: dict[str, Any], valid: Dataset | None, open_best: Callable[[], Detector]) -> Files:
    """report.html of a run, and of its best weights in evaluation/ what `evaluation_report` gives."""
    found: dict[str, Any] | None = None
    parts: list[Section] = []
    files: Files = {}
    if valid is not None:
        best = open_best()
        evaluation = evaluate(best, valid, max_dets=record["recipe"]["max_dets"])
        found = evaluation.to_dict()
        parts, inner = evaluation_parts(evaluation, best, valid)
        files = {f"evaluation/{name}": content for name, content in inner.items()}
    batches = [(path.stem, path.read_bytes()) for path in sorted((folder / "batches").glob("step-*.jpg"))]
    figures = [to_svg(chart) for chart in curves(record["history"], record["baseline"]).values()]
    sections = [Section("Run", table=_summary_table(record)), Section("Curves", figures=figures)]
    if record["gain"]:
        sections.append(Section("From the untouched start to the best weights", table=_gain_table(record)))
    sections += [Section(f"Best weights: {part.title}", part.text, part.table, part.figures, part.pictures) for part in parts]
    sections += [Section("Augmented batches", "What the first steps learned from.", pictures=batches)] if batches else []
    sections.append(Section("Recipe", "A star marks what is not the default.", _recipe_table(record["recipe"])))
    page = render_page(f"Run {folder.name}", sections, record={**record, "evaluation": found})
    return {**files, "report.html": as_bytes(page)}


def as_bytes(page: str) -> bytes:
    """UTF-8; what file names have that is none stands there as an escape."""
    return page.encode("utf-8", "backslashreplace")


def evaluation_report(found: Evaluation, detector: Detector, dataset: Dataset, *, resize: str = "evaluate", **about: str) -> Files:
    """report.json (with `about` first), report.html, charts as PNG files, and the worst images in worst/."""
    record = {**about, **found.to_dict()}
    sections, files = evaluation_parts(found, detector, dataset, resize, about)
    page = render_page(f"Evaluation of {about.get('model', detector.config.name)}", sections, record=record)
    return {**files, "report.json": (json.dumps(record) + "\n").encode("utf-8"), "report.html": as_bytes(page)}


def evaluation_parts(
    found: Evaluation, detector: Detector, dataset: Dataset, resize: str = "evaluate", about: Mapping[str, str] | None = None
) -> tuple[list[Section], Files]:
    """Sections for a page, and the same figures as files: charts, the worst images, and the record."""
    record = {**(about or {}), **found.to_dict()}
    charts = evaluation_charts(record)
    pairs = worst_pairs(detector, dataset, found, resize=resize)
    worst = [(pair.caption, draw_pair(pair.path, pair.truth, pair.found)) for pair in pairs]
    files = {"report.json": (json.dumps(record) + "\n").encode("utf-8")} | {f"{name}.png": to_png(c) for name, c in charts.items()}
    files |= {
        f"worst/{i:02}-{Path(p.path).stem[:STEM]}.jpg": content for i, (p, (_, content)) in enumerate(zip(pairs, worst, strict=True), 1)
    }
    return evaluation_sections(record, charts.values(), worst), files


def _summary_table(record: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    best = record["best"]
    rows = [
        ["starts from", str(record["model"])],
        ["pictures, scored, classes", f"{record['data']['images']}, {record['data']['valid']}, {len(record['data']['classes'])}"],
        ["epochs, steps, hours", f"{record['epochs']}, {record['steps']}, {record['hours']}"],
        ["steps skipped", str(len(record["skipped"]))],
        ["best weights", f"{best['weights']}, epoch {best['epoch'] + 1}"],
        *[[name, str(value)] for name, value in record["environment"].items()],
    ]
    return ["", ""], rows


def _gain_table(record: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Figures, then AP by class: start, best, difference."""
    start, best = record["baseline"], record["best"]
    pairs = [(name, start.get(name), best.get(name)) for name in SHOWN]
    pairs += [(f"AP of {name}", start["per_class"].get(name), ap) for name, ap in best["per_class"].items()]
    gain = [None if a is None or b is None else b - a for _, a, b in pairs]
    signed = [number(g) if g is None else f"{g:+.3f}" for g in gain]
    return ["", "start", "best", "gain"], [[n, number(a), number(b), g] for (n, a, b), g in zip(pairs, signed, strict=True)]


def _recipe_table(recipe: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    usual = Recipe().to_dict()
    return ["", "value", ""], [[name, str(value), "*" if value != usual[name] else ""] for name, value in recipe.items()]
