"""Charts show the numbers and names they were given, the same bytes each time, and leave matplotlib's globals alone."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rapidetr.core.errors import BackendMissing
from rapidetr.draw.charts import bars, heat_map, lines, scatter, to_png, to_svg

NAN = float("nan")
MAKERS: dict[str, Callable[[], Any]] = {
    "lines": lambda: lines({"one": ([0, 1, 2], [3.0, NAN, 1.0]), "dot": ([1], [2.0])}, title="T", x="x", y="y", y_range=(0, 4)),
    "bars": lambda: bars(["a", "b"], {"read": [1, 2], "run": [3, 4]}, title="T", x="ms"),
    "heat_map": lambda: heat_map(np.array([[3, 0], [1, 250]]), ["a", "b"], ["a", "b"], title="T", x="found", y="is"),
    "scatter": lambda: scatter({"g": ([1, 2], [3, 4])}, title="T", x="ms", y="AP", labels={"g": ["n", "s"]}, front=([1, 2], [3, 4])),
}


def texts(figure: Any) -> list[str]:
    """All texts of the chart, as letters."""
    return [re.sub(r"<[^>]*>", "", found) for found in re.findall(r"<text[^>]*>(.*?)</text>", to_svg(figure), re.S)]


@pytest.mark.parametrize("name", MAKERS)
def test_equal_numbers_give_equal_bytes_without_a_date(name: str) -> None:
    figures = MAKERS[name](), MAKERS[name]()
    svg = to_svg(figures[0])
    assert svg == to_svg(figures[1])
    assert "date" not in svg
    png = to_png(figures[0])
    assert png == to_png(figures[1])
    assert Image.open(io.BytesIO(png)).getextrema() != ((255, 255),) * 4  # something is drawn
    assert b"matplotlib" not in png[:500].lower()


def test_lines_keep_gaps_and_range() -> None:
    axes = MAKERS["lines"]().axes[0]
    assert np.array_equal(axes.lines[0].get_ydata(), [3.0, NAN, 1.0], equal_nan=True)
    assert axes.get_ylim() == (0, 4)
    assert (axes.lines[0].get_marker(), axes.lines[1].get_marker()) == ("None", "o")
    assert lines({"a": ([1, 10], [1, 2])}, title="", x="", y="", log_x=True).axes[0].get_xscale() == "log"


def test_bars_are_stacked_with_the_first_name_on_top() -> None:
    axes = MAKERS["bars"]().axes[0]
    assert [(bar.get_x(), bar.get_width()) for bar in axes.patches] == [(0, 1), (0, 2), (1, 3), (2, 4)]
    assert axes.yaxis_inverted()


def test_heat_maps_write_numbers_where_there_is_room() -> None:
    assert {"3", "0", "1", "250"} <= set(texts(MAKERS["heat_map"]()))
    names = [f"class{i}" for i in range(21)]
    found = texts(heat_map(np.full((21, 21), 7), names, names, title="T", x="", y=""))
    assert (found.count("7"), found.count("class20")) == (0, 2)
    assert "0.125" in texts(heat_map(np.array([[0.125, NAN]]), ["a"], ["b", "c"], title="", x="", y=""))


def test_scatter_names_its_points() -> None:
    figure = MAKERS["scatter"]()
    assert {"n", "s"} <= set(texts(figure))
    assert figure.axes[0].lines[0].get_drawstyle() == "steps-post"


def test_names_are_no_formulas_and_none_is_hidden() -> None:
    names = ["$a$", "_b", "金"]  # formula signs, a mark for hidden entries, letters that the font lacks
    figure = lines({name: ([0, 1], [0, 1]) for name in names}, title="$x_1$ per $", x="", y="")
    assert to_png(figure)
    assert {"$x_1$ per $", "$a$", "_b", "金"} <= {text.strip() for text in texts(figure)}


def test_matplotlib_is_imported_late_and_pyplot_never() -> None:
    code = (
        "import sys; from rapidetr.draw import charts; print('matplotlib' in sys.modules);"
        "charts.to_png(charts.lines({'a': ([0], [0])}, title='', x='', y='')); print('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split() == ["False", "False"]


def test_without_matplotlib_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BackendMissing) as problem:
        MAKERS["lines"]()
    assert str(problem.value) == "charts need matplotlib; install it with: pip install 'rapidetr[eval]'"
