"""Charts of numbers, by matplotlib's objects alone: nothing global changes, no window opens, equal numbers give equal bytes."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rapidetr.core.errors import BackendMissing
from rapidetr.draw.colors import PALETTE, Color

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

XY = tuple[Sequence[float], Sequence[float]]
INK, GRID = "#333333", "#dddddd"
NUMBERED_CELLS = 400  # a heat map with more cells shows colors alone
# text stays text in an SVG; ids in it come from its content, not from chance
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "rapidetr"}


def load_library() -> Any:
    """The module matplotlib; BackendMissing where it is not installed."""
    try:
        import matplotlib
        import matplotlib.figure
    except ImportError:
        raise BackendMissing("charts need matplotlib; install it with: pip install 'rapidetr[eval]'") from None
    return matplotlib


def lines(
    series: Mapping[str, XY], *, title: str, x: str, y: str, y_range: tuple[float, float] | None = None, log_x: bool = False
) -> Figure:
    """Named curves over a shared axis; numbers that are NaN leave a gap. A curve of one point is a dot."""
    figure, axes = _figure(title, x, y)
    for i, (name, (xs, ys)) in enumerate(series.items()):
        dash, dot = "-" if i < len(PALETTE) else "--", "o" if len(xs) < 2 else None
        axes.plot(xs, ys, color=_color(i), label=_shown(name), linewidth=1.6, marker=dot, linestyle=dash)
    if y_range:
        axes.set_ylim(*y_range)
    if log_x:
        axes.set_xscale("log")
    _legend(axes, len(series))
    return figure


def bars(names: Sequence[str], parts: Mapping[str, Sequence[float]], *, title: str, x: str) -> Figure:
    """One horizontal bar for each name, first on top, stacked from `parts`."""
    figure, axes = _figure(title, x, "", height=1.4 + 0.35 * max(len(names), 2))
    left, places = np.zeros(len(names)), np.arange(len(names))
    for i, (part, values) in enumerate(parts.items()):
        axes.barh(places, values, left=left, height=0.7, color=_color(i), label=_shown(part))
        left = left + np.asarray(values, float)
    axes.set_yticks(places, [_plain(name) for name in names])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    _legend(axes, len(parts))
    return figure


def heat_map(matrix: np.ndarray, rows: Sequence[str], columns: Sequence[str], *, title: str, x: str, y: str) -> Figure:
    """matrix [rows, columns] as colors (by square root, so that small numbers show) and, where there is room, as numbers."""
    values = np.asarray(matrix, float)
    side = [float(np.clip(2.5 + 0.42 * n, 4, 18)) for n in (len(columns), len(rows))]
    figure, axes = _figure(title, x, y, width=side[0], height=side[1])
    small = 9 if max(values.shape) <= 20 else 6
    low, high = (float(np.nanmin(values, initial=0)), float(np.nanmax(values, initial=0)))
    norm = load_library().colors.PowerNorm(0.5, low, max(high, low + 1e-9))
    rotation = 0 if max(map(len, columns)) * len(columns) <= 30 else 90
    axes.imshow(values, cmap="Blues", norm=norm, aspect="auto", interpolation="nearest")
    axes.set_xticks(range(len(columns)), [_plain(name) for name in columns], rotation=rotation, fontsize=small)
    axes.set_yticks(range(len(rows)), [_plain(name) for name in rows], fontsize=small)
    axes.grid(visible=False)
    if values.size <= NUMBERED_CELLS:
        for row, column in np.argwhere(~np.isnan(values)):
            value = float(values[row, column])
            ink = "white" if norm(value) > 0.6 else INK
            axes.text(column, row, f"{value:.3g}" if value % 1 else f"{value:.0f}", ha="center", va="center", color=ink, fontsize=small)
    return figure


def scatter(
    points: Mapping[str, XY], *, title: str, x: str, y: str, labels: Mapping[str, Sequence[str]] | None = None, front: XY | None = None
) -> Figure:
    """Groups of points; `labels` are written beside the points of a group, `front` is drawn as steps: best y up to each x."""
    figure, axes = _figure(title, x, y)
    if front is not None:
        axes.step(*front, where="post", color=GRID, linewidth=3, zorder=1)
    for i, (name, (xs, ys)) in enumerate(points.items()):
        axes.scatter(xs, ys, color=_color(i), label=_shown(name), s=36, zorder=2)
        for text, px, py in zip((labels or {}).get(name, ()), xs, ys, strict=False):
            axes.annotate(_plain(text), (px, py), textcoords="offset points", xytext=(5, 4), fontsize=8, color=INK)
    _legend(axes, len(points))
    return figure


def to_png(figure: Figure, dots_per_inch: int = 120) -> bytes:
    """The chart as a PNG file."""
    return _saved(figure, format="png", dpi=dots_per_inch, metadata={"Software": None})


def to_svg(figure: Figure) -> str:
    """The chart as an SVG document without a date."""
    return _saved(figure, format="svg", metadata={"Date": None, "Creator": None}).decode("utf-8")


def _saved(figure: Figure, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with load_library().rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # names in letters that the font lacks become boxes
        figure.savefig(buffer, **options)
    return buffer.getvalue()


def _figure(title: str, x: str, y: str, *, width: float = 7.0, height: float = 4.2) -> tuple[Figure, Axes]:
    figure = load_library().figure.Figure(figsize=(width, height), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    axes.set_title(_plain(title), fontsize=11, color=INK, loc="left")
    axes.set_xlabel(_plain(x), color=INK)
    axes.set_ylabel(_plain(y), color=INK)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _legend(axes: Axes, entries: int) -> None:
    """Inside for a few entries, beside the chart for many; none for one."""
    if entries > 1:
        place: dict[str, Any] = {"loc": "best"} if entries <= 6 else {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
        legend = axes.legend(fontsize=8, frameon=False, labelcolor=INK, **place)
        for text in legend.get_texts():
            text.set_parse_math(False)


def _plain(text: str) -> str:
    """A name as it is: `$` would start a formula."""
    return text.replace("$", r"\$")


def _shown(name: str) -> str:
    """A name that a legend shows: it would leave out one that starts with an underscore."""
    return f" {name}" if name.startswith("_") else name


def _color(i: int) -> str:
    color: Color = PALETTE[i % len(PALETTE)]
    return "#{:02x}{:02x}{:02x}".format(*color)
