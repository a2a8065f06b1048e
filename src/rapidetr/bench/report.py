"""A report as one HTML page: its numbers are those of the JSON, which it also carries whole."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from rapidetr.core.clock import STAGES
from rapidetr.core.reports import BenchReport, BenchRow, number
from rapidetr.draw.charts import bars, lines, scatter, to_svg
from rapidetr.draw.page import Section, render_page


def render_report(report: BenchReport) -> str:
    """Self-contained HTML; BackendMissing without matplotlib."""
    sections = [
        Section("Latency", summary(report), table=report.to_table()),
        Section("Where the time goes", stage_text(), table=stage_table(report.rows), figures=[stage_bars(report.rows)]),
        Section("Distribution", "Part of the calls that took at most so long.", figures=[distribution(report.rows)]),
        Section("Latency against load", load_text(report.rows), figures=[latency_by_load(report.rows)]),
        Section("Accuracy against latency", published_text(report), figures=accuracy_charts(report)),
        Section("Environment", f"`{report.command}`, {report.created}", table=(("item", "value"), items(report.environment))),
    ]
    return render_page(f"Benchmark of {', '.join(sorted({row.artifact for row in report.rows}))}", sections, record=report.to_dict())


def summary(report: BenchReport) -> str:
    data = report.dataset
    cold = next((row.cold_start_s for row in report.rows if row.cold_start_s is not None), None)
    said = [f"{data['pictures']} pictures of {data['path']}. Milliseconds of one call of a whole batch, end to end."]
    said += [] if cold is None else [f"A fresh process needs {cold:.2f} s until its first detection."]
    said += [f"{'Note' if row.usable else 'NOT USABLE'}: {row.setting}: {reason}." for row in report.rows for reason in row.reasons]
    return "\n\n".join(said)


def stage_text() -> str:
    return (
        "Mean milliseconds of each stage. With prefetch, reading, decoding and preparing run beside the network and do not add up; "
        '"wait" is what a call waited for input, or for a free stream. The part of the total outside all stages is the last column.'
    )


def stages_of(rows: Sequence[BenchRow]) -> list[str]:
    return [name for name in ("wait", *STAGES) if any(name in row.stages for row in rows)]


def stage_table(rows: Sequence[BenchRow]) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    names = [*stages_of(rows), "total"]

    def cells(row: BenchRow) -> list[str]:
        outside = "-" if row.unaccounted is None else f"{100 * row.unaccounted:.2f}%"
        return [row.setting, *(number(row.stages[n].mean if n in row.stages else None) for n in names), outside]

    return ["setting", *names, "outside"], [cells(row) for row in rows]


def stage_bars(rows: Sequence[BenchRow]) -> str:
    parts = {name: [row.stages[name].mean if name in row.stages else 0.0 for row in rows] for name in stages_of(rows)}
    return to_svg(bars([row.setting for row in rows], parts, title="Mean time by stage", x="ms"))


def distribution(rows: Sequence[BenchRow]) -> str:
    curves = {}
    for row in rows:
        ms = np.sort(np.ravel(row.totals_ms))
        curves[row.setting] = (ms.tolist(), ((np.arange(ms.size) + 1) / ms.size).tolist())
    return to_svg(lines(curves, title="Latency distribution", x="ms", y="part of calls", y_range=(0, 1.02)))


def load_text(rows: Sequence[BenchRow]) -> str:
    opened = any(row.rate is not None for row in rows)
    more = "" if opened else " No arrival rates were asked for (--rates), so waiting under load is not shown."
    return f"Pictures a second that were done, and the latency of a call at that load; open loads count from the arrival.{more}"


def latency_by_load(rows: Sequence[BenchRow]) -> str:
    """p50, and p95 where it is known, of each kind of load."""
    groups: dict[str, list[BenchRow]] = defaultdict(list)
    for row in sorted(rows, key=lambda r: r.images_per_second):
        groups[row.load].append(row)
    curves = {}
    for load, group in groups.items():
        known = [row for row in group if row.total.p95 is not None]
        curves[f"{load} p50"] = ([r.images_per_second for r in group], [r.total.p50 for r in group])
        if known:
            curves[f"{load} p95"] = ([r.images_per_second for r in known], [r.total.p95 or 0.0 for r in known])
    return to_svg(scatter(curves, title="Latency against load", x="pictures a second", y="ms"))


def published_text(report: BenchReport) -> str:
    said = []
    if report.published:
        p = report.published
        said.append(f"Published for {p['model']}: {p['ms']} ms and AP {p['ap']} % of {p['of']} ({p['scope']}).")
    forward = next((row.forward_only for row in report.rows if row.batch == 1 and row.forward_only), None)
    first = next((row for row in report.rows if row.batch == 1), None)
    if forward and first:
        outside = first.total.p50 - first.stages["run"].p50
        said.append(
            f"Our forward alone takes {forward.p50:.2f} ms (p50, {first.engine} {first.precision} on {first.device}), a whole prediction "
            f"{first.total.p50:.2f} ms: {outside:.2f} ms of it lie outside the network, which published figures leave out. The rest of the "
            "difference is the device, the precision and the engine."
        )
    if report.ap:
        kind, ap = accuracy(report)
        said.append(f"AP of {kind} {ap} on {report.ap['pictures']} pictures ({report.ap['split']}), same artifact, same `predict`.")
    else:
        said.append("No annotations were given, so accuracy is not known.")
    return "\n\n".join(said)


def accuracy(report: BenchReport) -> tuple[str, float | None]:
    """(boxes or masks, AP 0..1 of them): of masks where they were scored, as published figures are."""
    scores = report.ap or {"boxes": {"AP": None}, "masks": None}
    kind = "masks" if scores["masks"] else "boxes"
    return kind, scores[kind]["AP"]


def accuracy_charts(report: BenchReport) -> list[str]:
    """Every setting at the one AP of the artifact, the published figure beside it; no chart without AP."""
    kind, ap = accuracy(report)
    if ap is None:
        return []
    points = {row.setting: ([row.total.p50], [ap]) for row in report.rows}
    if report.published:
        points[f"published: {report.published['scope']}"] = ([report.published["ms"]], [report.published["ap"] / 100])
    return [to_svg(scatter(points, title="Accuracy against latency", x="p50 ms of a call", y=f"AP of {kind}"))]


def items(environment: dict[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Nested sections as (dotted name, text)."""
    found: list[tuple[str, str]] = []
    for name, value in environment.items():
        found += items(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, str(value))]
    return found
