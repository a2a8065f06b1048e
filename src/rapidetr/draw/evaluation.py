"""What an evaluation says, as charts, pictures and sections of a page. It is given as the record that `Evaluation.to_dict` makes."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from rapidetr.core.detections import Detections
from rapidetr.draw.boxes import draw_detections
from rapidetr.draw.charts import heat_map, lines, to_svg
from rapidetr.draw.page import Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVES = 11  # classes with a curve of their own; more could not be told apart
SIDE_PX = 640  # of a drawn picture


def evaluation_charts(record: Mapping[str, Any]) -> dict[str, Figure]:
    """pr and confusion of boxes, and where there are masks pr-masks and confusion-masks."""
    charts = {}
    for kind, measure in _measures(record).items():
        ending = "" if kind == "boxes" else f"-{kind}"
        charts[f"pr{ending}"] = precision_recall(measure, record["class_names"], kind)
        charts[f"confusion{ending}"] = confusion(measure, record["class_names"], kind)
    return charts


def precision_recall(measure: Mapping[str, Any], names: Sequence[str], kind: str) -> Figure:
    """The mean over classes, and the classes with most objects, at IoU 0.5."""
    curves = np.array(measure["curves"], float)  # None becomes NaN
    recall = np.linspace(0, 1, curves.shape[1]).tolist()
    known = [int(i) for i in np.argsort(-np.array(measure["objects"]), kind="stable") if not np.isnan(curves[i]).all()]
    series = {"all classes": (recall, curves[known].mean(0).tolist())} if known else {}
    series |= {names[i]: (recall, curves[i].tolist()) for i in known[:CURVES]} if len(known) > 1 else {}
    return lines(series, title=f"Precision and recall of {kind}, IoU 0.5", x="recall", y="precision", y_range=(0, 1.02))


def confusion(measure: Mapping[str, Any], names: Sequence[str], kind: str) -> Figure:
    labels = [*names, "background"]
    title = f"Confusion of {kind}, scores above {number(measure['shown_above'])}"
    return heat_map(np.array(measure["confusion"]), labels, labels, title=title, x="found as", y="is")


def evaluation_sections(record: Mapping[str, Any], charts: Iterable[Figure], worst: Sequence[tuple[str, bytes]]) -> list[Section]:
    """COCO's numbers, classes, charts and the worst pictures; the numbers are those of the record to three places."""
    measures = _measures(record)
    objects = sum(record["boxes"]["objects"])
    text = f"{len(record['image_names'])} images, {objects} objects; at most {record['max_dets']} detections of each image and class count."
    rows = [[name, *(number(m["metrics"][name]) for m in measures.values())] for name in record["boxes"]["metrics"]]
    sections = [Section("Average precision and recall", "\n\n".join([text, *record["notes"]]), (["", *measures], rows))]
    sections += [Section(f"Classes, {kind}", table=_class_table(m, record["class_names"])) for kind, m in measures.items()]
    sections.append(Section("Curves and confusion", figures=[to_svg(chart) for chart in charts]))
    told = "Left as annotated, right as found." if worst else "None has a mistake."
    return [*sections, Section("Worst images", told, pictures=worst)]


def _class_table(m: Mapping[str, Any], names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    columns = [[m["metrics"]["AP"], *m["ap"]], [m["metrics"]["AP50"], *m["ap50"]], m["f1"], m["threshold"], m["precision"], m["recall"]]
    counts = [sum(m["objects"]), *m["objects"]]
    rows = zip(["all classes", *names], counts, *columns, strict=True)
    heads = ["class", "objects", "AP", "AP50", "best F1", "threshold", "precision", "recall"]
    return heads, [[name, str(count), *map(number, values)] for name, count, *values in rows]


def draw_pair(path: str, truth: Detections, found: Detections) -> bytes:
    """A JPEG file: the picture as annotated and, beside it, as found."""
    sides = [draw_detections(one, path) for one in (truth, found)]
    for side in sides:
        side.thumbnail((SIDE_PX, SIDE_PX))
    width, height = sides[0].size
    both = Image.new("RGB", (2 * width + 8, height), "white")
    both.paste(sides[0], (0, 0))
    both.paste(sides[1], (width + 8, 0))
    return to_jpeg(both)


def to_jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def number(value: float | None) -> str:
    """Three places, or a dash for what is not defined."""
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def _measures(record: Mapping[str, Any]) -> dict[str, Any]:
    return {kind: record[kind] for kind in ("boxes", "masks") if record[kind] is not None}
