"""`rapidetr bench` with a tiny model: files, JSON, exit status, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from rapidetr.bench.runner import Instruments
from rapidetr.bench.sensors import CpuTimes, Watch
from rapidetr.core.reports import BenchReport

QUICK = ("--rounds", "2", "--seconds", "5", "--cool-down", "0", "--no-cold-start", "--device", "cpu", "--threads", "1")


@pytest.fixture(autouse=True)
def quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else this computer does, these runs count as usable."""
    idle = CpuTimes(0.0, 0.0, 0.0, 0.0)
    watch = partial(Watch, cpu_mhz=lambda: 3000.0, cpu_times=lambda: idle, cpu_throttles=lambda: 0)
    monkeypatch.setattr("rapidetr.bench.runner.Instruments", partial(Instruments, watch=watch))
    monkeypatch.setattr("rapidetr.bench.compare.Instruments", partial(Instruments, watch=watch))


def test_bench_writes_a_report_and_judges_against_it(run, model: Path, pictures: Path, tmp_path: Path) -> None:
    words = ("bench", model, "--data", pictures, *QUICK)
    status, out, err = run(
        *words, "--batches", "1,2", "--prefetch", "0,1", "--thread-counts", "1", "--rates", "50", "--out", "reports", "--json"
    )
    assert status == 0, err
    record = json.loads(out.splitlines()[-1])
    report = BenchReport.from_dict(record)
    assert report == BenchReport.read(tmp_path / "reports" / "report.json")
    assert f"{report.rows[0].total.p50:.2f}" in (tmp_path / "reports" / "report.html").read_text(encoding="utf-8")
    assert [(r.batch, r.prefetch, r.rate) for r in report.rows] == [
        (1, 0, None),
        (1, 1, None),
        (2, 0, None),
        (2, 1, None),
        (1, 0, 50),
        (2, 0, 50),
    ]
    first = report.rows[0]
    assert set(first.stages) == {"read", "decode", "prepare", "transfer", "run", "select", "total"}
    assert sum(s.mean for n, s in first.stages.items() if n != "total") <= first.total.mean
    assert (first.model, first.artifact, first.size_hw, first.queries) == ("tiny-det", str(model), (64, 64), 20)
    assert (report.dataset["pictures"], report.ap, report.published) == (3, None, None)
    assert len(report.artifact_sha256) == 64
    assert report.environment["torch"]["threads"] == 1
    assert "images/s" in err  # with --json the table goes to stderr

    status, out, err = run("bench", "--compare", "reports/report.json", "reports/report.json")
    assert status == 0
    assert out.count(": no difference") == 6

    slower = json.loads((tmp_path / "reports" / "report.json").read_text())
    for row in slower["rows"]:
        row["totals_ms"] = [[ms / 1000 for ms in calls] for calls in row["totals_ms"]]
    (tmp_path / "quick.json").write_text(json.dumps(slower))
    status, out, _ = run(*words, "--against", "quick.json", "--max-slowdown", "900%", "--json")
    assert status == 1
    assert json.loads(out.splitlines()[-1])["kept"] is False
    status, out, _ = run(*words, "--against", "quick.json", "--max-slowdown", "100000000%")
    assert status == 0
    assert out.splitlines()[-1] == "at most 100000000.0% slower than quick.json: kept"


def test_two_models_in_turn(run, model: Path, make_model: Callable[..., Path], pictures: Path, tmp_path: Path) -> None:
    status, out, _ = run("bench", "--compare", model, make_model("tiny_seg"), "--data", pictures, *QUICK, "--out", "both")
    assert status == 0
    assert out.splitlines()[0].endswith("tiny_seg.safetensors, interleaved")
    assert json.loads((tmp_path / "both" / "comparison.json").read_text())["paired"] is True


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nano",), "expected MODEL and --data, or --compare with two reports or models"),
        (("--compare", "a.json", "b"), "--compare got a.json and b; expected two reports (.json), or two models and --data"),
        (("nano", "--data", "x", "--percentile", "99"), "p99 of 60 runs says nothing; expected at least 299: 100 rounds"),
        (("nano", "--data", "nix"), "nix is not there; check the path"),
        (("nano", "--data", "x", "--against", "nix.json"), "nix.json: expected a report that `rapidetr bench` wrote"),
        (("nano", "--batches", "1,x"), "argument --batches: expected a whole number of at least 1, got 'x'"),
        (("nano", "--max-slowdown", "much"), "argument --max-slowdown: expected a part such as 5% or 0.05, got 'much'"),
        (("nano", "--rates", "0"), "argument --rates: expected a number above 0, got '0'"),
    ],
)
def test_wrong_use_says_what_was_expected(run, words: tuple[str, ...], message: str) -> None:
    status, _, err = run("bench", *words)
    assert status == 2
    assert message in err


@pytest.mark.slow
def test_a_dataset_gives_accuracy_and_a_fresh_process_its_time(run, model: Path, tmp_path: Path) -> None:
    import numpy as np

    from rapidetr.core.labels import LabelSpace
    from rapidetr.data.write import write_coco

    rng = np.random.default_rng(0)
    scenes = [
        (f"{i}.png", rng.integers(0, 256, (40, 50, 3), np.uint8), np.array([[4.0, 4, 30, 30]]), np.array([0]), None) for i in range(3)
    ]
    write_coco(tmp_path / "data", "valid", scenes, LabelSpace.contiguous(["cat", "dog", "7"], dataset_ids=[10, 20, 30]))
    words = [word for word in QUICK if word != "--no-cold-start"]
    status, out, err = run("bench", model, "--data", "data", *words, "--size", "64x32", "--queries", "7", "--json")
    assert status == 0, err
    report = BenchReport.from_dict(json.loads(out.splitlines()[-1]))
    assert report.dataset["split"] == "valid"
    assert (report.ap["pictures"], report.ap["resize"]) == (3, "predict")
    assert 0 <= report.ap["boxes"]["AP"] <= 1
    assert (report.rows[0].size_hw, report.rows[0].queries) == ((64, 32), 7)
    assert report.rows[0].cold_start_s > 0.1
