"""What a run draws: it shows the numbers of its record, changes nothing in the run, and never ends it."""

from __future__ import annotations

import io
import json
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import DETECT, assert_same_end, run, write_scenes

from rapidetr.checkpoints.file import Checkpoint
from rapidetr.core.labels import LabelSpace
from rapidetr.core.preprocessing import Preprocessing
from rapidetr.data.batches import TrainBatch, Truth
from rapidetr.data.read import read_dataset
from rapidetr.draw.colors import class_color
from rapidetr.draw.evaluation import evaluation_sections, number
from rapidetr.evaluation.evaluate import evaluate
from rapidetr.evaluation.worst import worst_pairs
from rapidetr.runtime.load import load
from rapidetr.training.records import epoch_head, epoch_line
from rapidetr.training.report import curves
from rapidetr.training.reporter import Reporter, draw_batch
from rapidetr.training.state import Progress

LABELS = LabelSpace.contiguous(["cat", "dog"])
START = Checkpoint({}, replace(DETECT, class_rows=3), LABELS, Preprocessing(), "", {})
HISTORY: list[dict[str, Any]] = [
    {"epoch": 0, "step": 5, "loss": 3.5, "loss_ce": 1.0, "seconds": 40.0, "raw": {"AP": 0.25, "AP50": 0.5},
     "ema": {"AP": 0.5, "AP50": 0.75}},
    {"epoch": 1, "step": 10, "loss": 2.5, "loss_ce": 0.5, "seconds": 3725.0},
]  # fmt: skip


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes") / "data")


@pytest.fixture(scope="module")
def drawn(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "run"
    run(scenes, folder, epochs=1, report=True, loggers=["tensorboard"])
    return folder


def embedded(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="record">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found[1])


def rows_of(page: str, title: str) -> Iterator[list[str]]:
    """Cells of the table under a heading."""
    section = page.split(f"<h2>{title}</h2>")[1].split("</section>")[0]
    for row in re.findall(r"<tr>(<td>.*?)</tr>", section):
        yield [unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", row)]


@pytest.mark.slow
def test_drawing_and_logging_change_no_bit_of_a_run(scenes: Path, drawn: Path, tmp_path: Path) -> None:
    run(scenes, tmp_path / "plain", epochs=1)
    assert_same_end(drawn, tmp_path / "plain")
    assert not list((tmp_path / "plain").rglob("*.png"))
    assert not (tmp_path / "plain" / "report.html").exists()


@pytest.mark.slow
def test_the_page_shows_the_numbers_of_the_record(drawn: Path) -> None:
    page = (drawn / "report.html").read_text("utf-8")
    record = json.loads((drawn / "record.json").read_text("utf-8"))
    evaluation = json.loads((drawn / "evaluation" / "report.json").read_text("utf-8"))
    assert embedded(page) == {**record, "evaluation": evaluation}
    best = record["best"]
    # the report looks at the saved weights again: the same arithmetic on the same numbers
    assert {name: evaluation["boxes"]["metrics"][name] or 0.0 for name in ("AP", "AP50")} == {name: best[name] for name in ("AP", "AP50")}
    gains = {row[0]: row[1:] for row in rows_of(page, "From the untouched start to the best weights")}
    start, gain = record["baseline"], record["gain"]["AP"]
    assert gains["AP"] == [number(start["AP"]), number(best["AP"]), f"{gain:+.3f}"]
    for name, ap in best["per_class"].items():
        assert gains[f"AP of {name}"][:2] == [number(start["per_class"][name]), number(ap)]
    recipe = {name: (value, star) for name, value, star in rows_of(page, "Recipe")}
    assert (recipe["epochs"], recipe["lr"]) == (("1", "*"), ("0.0001", ""))
    assert len(list(rows_of(page, "Best weights: Classes, boxes"))) == 1 + len(evaluation["class_names"])


@pytest.mark.slow
def test_pictures_and_charts_lie_in_the_folder(drawn: Path) -> None:
    found = {str(path.relative_to(drawn)) for kind in ("*.png", "*.jpg", "*.html") for path in drawn.rglob(kind)}
    worst = {name for name in found if name.startswith("evaluation/worst/")}
    assert {re.sub(r"\d+", "N", Path(name).stem) for name in worst} == {"N-scene_N"}
    charts = {"loss.png", "loss-parts.png", "ap.png", "evaluation/pr.png", "evaluation/confusion.png"}
    assert found - worst == charts | {f"batches/step-{i}.jpg" for i in range(3)} | {"report.html"}
    for name in found - {"report.html"}:
        Image.open(drawn / name).load()


@pytest.mark.slow
def test_sections_and_worst_pairs_are_those_of_the_evaluation(scenes: Path, drawn: Path) -> None:
    dataset, detector = read_dataset(scenes, "valid"), load(drawn, device="cpu")
    found = evaluate(detector, dataset, threshold=0.0)
    pairs = worst_pairs(detector, dataset, found, count=1)
    index = int(found.boxes.worst_images()[0])
    record = dataset.images[index]
    assert [pair.path for pair in pairs] == [record.path]
    assert np.array_equal(pairs[0].truth.class_ids, record.class_ids)
    assert np.allclose(pairs[0].truth.boxes_xyxy_px, np.clip(record.boxes_xyxy_px, 0, 96), atol=0)
    right, missed, _, confused = found.boxes.counts[index]
    assert len(pairs[0].truth) == right + missed + confused
    assert set(pairs[0].found.class_names) <= set(dataset.labels.names)
    told = dict(zip(("right", "missed", "false", "confused"), found.boxes.counts[index], strict=True))
    assert pairs[0].caption == f"{record.path}: " + ", ".join(f"{n} {what}" for what, n in told.items())
    sections = {section.title: section for section in evaluation_sections(found.to_dict(), [], [])}
    heads, rows = sections["Classes, boxes"].table or ((), ())
    for row, name, ap in zip(rows[1:], found.class_names, found.boxes.ap.tolist(), strict=True):
        assert (row[0], row[heads.index("AP")]) == (name, number(ap))


def test_a_batch_is_drawn_in_its_own_colors_with_its_boxes() -> None:
    color, hw = np.array([200, 30, 90]), (64, 96)
    mean, std = np.array(START.preprocessing.mean), np.array(START.preprocessing.std)
    pixels = torch.tensor((color / 255 - mean) / std, dtype=torch.float32).reshape(1, 3, 1, 1).expand(2, 3, *hw)
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.5]])  # columns 24 to 72, rows 16 to 48
    truths = (Truth(torch.tensor([1]), boxes, None), Truth(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), None))
    grid = np.asarray(Image.open(io.BytesIO(draw_batch(TrainBatch(pixels, truths, ("a", "b")), START))), int)
    assert grid.shape == (64, 192, 3)
    # JPEG keeps flat colors to a few steps, lines of a pixel only roughly
    assert np.abs(grid[8:56, 104:184] - color).max() <= 6
    assert np.abs(grid[36:44, 32:64] - color).max() <= 20
    line = grid[47, 32:64].mean(0)
    assert np.abs(line - class_color(1)).sum() < np.abs(line - color).sum()


def test_curves_show_the_history() -> None:
    charts = curves(HISTORY, {"AP": 0.125, "AP50": 0.25})
    assert list(charts) == ["loss", "loss-parts", "ap"]
    drawn = {line.get_label(): line.get_xydata().tolist() for chart in charts.values() for line in chart.axes[0].lines}
    assert drawn == {
        "loss": [[1, 3.5], [2, 2.5]],
        "loss_ce": [[1, 1.0], [2, 0.5]],
        "raw/AP": [[0, 0.125], [1, 0.25]],
        "ema/AP": [[0, 0.125], [1, 0.5]],
        "raw/AP50": [[0, 0.25], [1, 0.5]],
        "ema/AP50": [[0, 0.25], [1, 0.75]],
    }
    assert list(curves(HISTORY[1:], {})) == ["loss", "loss-parts"]


def test_lines_of_epochs_stand_under_their_heads() -> None:
    best = {"epoch": 0, "weights": "ema", "AP": 0.5}
    lines = [epoch_head(False), *(epoch_line(row, 20, best, False) for row in HISTORY)]
    assert lines == [
        "    epoch     loss      cls      box     giou   AP raw   AP ema     best      time",
        "   1/20      3.500    1.000        -        -    0.250    0.500   0.500*   0:00:40",
        "   2/20      2.500    0.500        -        -        -        -       -    1:02:05",
    ]
    heads, first = lines[0], lines[1]
    assert len({len(line) for line in lines}) == 1
    assert all(first[match.end() - 1] != " " for match in re.finditer("loss|cls|raw|ema|time", heads))


def test_without_matplotlib_it_is_said_once_and_nothing_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said: list[str] = []
    reporter = Reporter(tmp_path, START, {}, said.append)
    progress = Progress(history=HISTORY, seconds=1e3)
    reporter.begin(progress)
    reporter.epoch(progress)
    reporter.end({"history": HISTORY, "baseline": {}}, None, lambda: pytest.fail("opened"))
    reporter.close()
    assert said == ["charts left out: charts need matplotlib; install it with: pip install 'rapidetr[eval]'"]
    assert list(tmp_path.iterdir()) == []


def test_what_fails_is_told_once_and_leaves_the_generators_alone(tmp_path: Path) -> None:
    said: list[str] = []
    reporter = Reporter(tmp_path, START, {}, said.append)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    for _ in range(2):
        with reporter.attempt("pictures"):
            random.random(), np.random.rand(), torch.rand(1)
            raise ValueError("no disk")
    assert said == ["pictures left out: no disk"]
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_charts_are_not_drawn_after_every_short_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[float] = []
    reporter = Reporter(tmp_path, START, {}, print)
    monkeypatch.setattr(Reporter, "_draw_curves", lambda self, history, baseline: times.append(self.drawn_at))
    for seconds in (5.0, 29.0, 31.0, 60.0, 61.0):
        reporter.epoch(Progress(history=HISTORY, seconds=seconds))
    assert times == [31.0, 61.0]
