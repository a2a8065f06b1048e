"""`rapidetr choose` on recorded reports, on made-up measurements, and on two tiny networks."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import cases
import numpy as np
import pytest

import rapidetr
from rapidetr.checkpoints.file import Checkpoint, save_checkpoint
from rapidetr.choice.measure import Trial
from rapidetr.choice.rank import Answer
from rapidetr.choice.records import Candidate, Measured, read_promise
from rapidetr.core.config import VARIANTS
from rapidetr.core.preprocessing import Preprocessing
from rapidetr.core.reports import SCHEMA, BenchReport, BenchRow, Latency
from rapidetr.core.work import gigamacs
from rapidetr.data.read import read_dataset
from rapidetr.demo.dataset import write_dataset
from rapidetr.deployment.registry import Registry
from rapidetr.model.build import build
from rapidetr.runtime.artifact import Manifest, write_artifact


def report(folder: Path, model: str, ms: float, ap: float | None, *, usable: bool = True, batch: int = 1) -> Path:
    """A report whose 60 calls take `ms`, give or take 2 %."""
    total = Latency.measure(ms * (1 + 0.02 * np.sin(np.arange(60.0))))
    row = BenchRow(
        model=model, artifact=model, size_hw=(384, 384), decoder_layers=2, queries=300, engine="torch", precision="float32", device="cpu",
        gmacs=gigamacs(VARIANTS[model], (384, 384), 2, 300), threads=1, batch=batch, streams=1, prefetch=0, load="closed", rate=None,
        file_cache="warm", stages={"total": total},
        unaccounted=0.0, images_per_second=1000 / ms, totals_ms=((ms,),), forward_only=None, cold_start_s=None, compile_s=None,
        peak_process_mb=500.0, peak_device_mb=None, noise={}, usable=usable, reasons=() if usable else ("steal 20 %",),
    )  # fmt: skip
    scores = None if ap is None else {"boxes": {"AP": ap}, "masks": None}
    data = {"path": "data", "sha256": "d" * 64, "pictures": 9, "split": "valid"}
    return BenchReport(SCHEMA, "2026-01-01T00:00:00+00:00", "rapidetr bench", {"processor": "p"}, None, data, scores, None, (row,)).write(
        folder / f"{model}.json"
    )


def test_recorded_reports(run, tmp_path):
    paths = [report(tmp_path, "nano", 30, 0.42), report(tmp_path, "small", 36, 0.46), report(tmp_path, "medium", 50, 0.5)]
    status, out, _ = run("choose", "--reports", *paths, "--p95-ms", 40, "--min-ap", 0.4, "--out", "choice", "--json")
    assert status == 0
    document = json.loads(out.splitlines()[-1])
    assert document["kept"] is True
    answer = Answer.from_dict(json.loads(Path("choice/answer.json").read_text()))
    assert answer.to_dict() == Answer.from_dict(document["answer"]).to_dict()
    promise, chosen = read_promise("choice/service_level.json")
    assert (chosen.candidate.model, promise.most_accurate.candidate.model) == ("nano", "small")
    assert chosen.source == str(paths[0])
    assert chosen.gmacs == gigamacs(VARIANTS["nano"], (384, 384), 2, 300)
    assert chosen.dataset_sha256 == "d" * 64
    assert promise.environment == {"processor": "p"}
    assert Path("choice/pareto.png").read_bytes().startswith(b"\x89PNG")
    page = Path("choice/report.html").read_text(encoding="utf-8")
    record = re.search(r'<script type="application/json" id="record">(.*?)</script>', page, re.S)[1]
    assert json.loads(record) == json.loads(Path("choice/answer.json").read_text())


def test_nothing_fits_ends_with_1_and_says_what_would_help(run, tmp_path):
    paths = [report(tmp_path, "nano", 30, 0.42), report(tmp_path, "small", 36, None)]
    status, out, _ = run("choose", "--reports", *paths, "--p95-ms", 20, "--min-ap", 0.4)
    assert status == 1
    p95 = BenchReport.read(paths[0]).rows[0].total.p95
    assert f"nearest miss: nano 384x384, 2 layers, 300 queries, torch float32: p95 {p95:.4g} ms (" in out
    assert f"is over 20 ms, by {5 * BenchReport.read(paths[0]).rows[0].total.p95_interval[1] - 100:.1f} %" in out
    assert "alone would let in nano" in out
    assert "AP was not measured" in out
    assert out.splitlines()[-2:] == ["smallest: nothing keeps the service level", "most accurate: nothing keeps the service level"]


def test_noise_refuses_unless_allowed(run, tmp_path):
    path = report(tmp_path, "nano", 30, 0.42, usable=False)
    status, out, _ = run("choose", "--reports", path, "--p95-ms", 40)
    assert status == 1
    assert "the run is not usable: steal 20 %; measure again on a quiet machine" in out
    status, out, _ = run("choose", "--reports", path, "--p95-ms", 40, "--allow-noise")
    assert status == 0
    assert "note: --allow-noise: runs on a machine that was not quiet were used" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--p95-ms", 40), "expected --data and --models, or --reports; one of the two"),
        (("--p95-ms", 40, "--min-ap", 40, "--reports", "x"), "min_ap is 40.0; expected 0 to 1"),
        (("--p95-ms", 40, "--reports", "x.json"), "x.json: expected a report that `rapidetr bench` wrote"),
    ],
)
def test_wrong_use(run, words, message):
    status, _, err = run("choose", *words)
    assert status == 2
    assert err.startswith(f"rapidetr: error: {message}")


def test_a_report_of_other_loads_is_refused(run, tmp_path):
    path = report(tmp_path, "nano", 30, 0.42, batch=4)
    _, _, err = run("choose", "--reports", path, "--p95-ms", 40)
    assert err == f"rapidetr: error: {path}: no row has batch 1, one stream, no prefetch and closed load; a service level needs that one\n"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for split, count in (("train", 1), ("valid", 3)):
        write_dataset(tmp_path / "data", count, 5, split=split, size_hw=(96, 96))
    return tmp_path / "data"


def test_measured_now_and_resumed(run, data, model, monkeypatch):
    asked: list[tuple[Candidate, str]] = []

    def fake(self: Trial, c: Candidate, step: str) -> Measured:
        asked.append((c, step))
        ms, common = 20.0 * c.decoder_layers, {"dataset_sha256": self.dataset_sha256, "gmacs": float(c.decoder_layers), "memory_mb": 300.0}
        if step == "screen":
            return Measured(c, "screen", p50_ms=ms, p95_interval_ms=(ms, None), ap=0.4, ap_margin=0.1, **common)
        if step == "time":
            return Measured(c, "time", ms, ms + 1, (ms, ms + 2), **common)
        return Measured(c, "full", ap=0.3 + 0.1 * c.decoder_layers)

    monkeypatch.setattr(Trial, "measure", fake)
    words = ("choose", "--data", data, "--models", model, "--decoder-layers", "all", "--out", "choice", "--p95-ms")
    status, _, _ = run(*words, 50)
    assert status == 0
    assert [step for _, step in asked].count("screen") == 2
    promise, chosen = read_promise("choice/service_level.json")
    assert (chosen.candidate.decoder_layers, promise.most_accurate.candidate.decoder_layers) == (1, 2)
    assert len(chosen.artifact_sha256) == 64
    assert len(chosen.dataset_sha256) == 64
    first = len(asked)
    assert run(*words, 30)[0] == 0
    assert len(asked) == first  # another limit, the same measurements
    assert run(*words, 10)[0] == 1


def test_artifacts_and_registries_take_part_with_their_own_values(run, data, model, monkeypatch, tmp_path):
    detector = rapidetr.load(str(model), device="cpu", dtype="bfloat16", decoder_layers=1, queries=3)
    write_artifact(tmp_path / "mine-bf16", {"best.safetensors": model}, Manifest.of(detector, source=model, parameters={}))
    Registry(tmp_path / "registry").add(tmp_path / "mine-bf16")
    asked: list[Candidate] = []

    def fake(self: Trial, c: Candidate, step: str) -> Measured:
        asked.append(c)
        self.open(c)
        return Measured(c, "screen", problem="enough")

    monkeypatch.setattr(Trial, "measure", fake)
    models = f"{model},{tmp_path / 'mine-bf16'},{tmp_path / 'registry' / 'current'}"
    assert run("choose", "--data", data, "--models", models, "--decoder-layers", "2", "--engines", "torch", "--p95-ms", 50)[0] == 1
    assert {(c.model, c.precision, c.decoder_layers, c.queries) for c in asked} == {
        (str(model), "float32", 2, detector.config.queries),
        (str(tmp_path / "mine-bf16"), "bfloat16", 1, 3),
        (str(tmp_path / "registry" / "current"), "bfloat16", 1, 3),
    }


@pytest.mark.slow
def test_two_tiny_networks_for_real(run, data, tmp_path):
    labels, models = read_dataset(data, "valid").labels, []
    for case in ("tiny_det", "tiny_multi"):
        config = replace(cases.config_of(case), name=case, class_rows=labels.head_rows, groups=1)
        checkpoint = Checkpoint(build(config, seed=1).state_dict(), config, labels, Preprocessing(), "", {})
        models.append(str(save_checkpoint(checkpoint, tmp_path / f"{case}.safetensors")))
    words = ("choose", "--data", data, "--models", ",".join(models), "--p95-ms", 60000, "--memory-mb", 20000, "--threads", 1)
    status, out, err = run(*words, "--rounds", 20, "--allow-noise", "--out", "choice")  # limits that any machine keeps
    assert status == 0, out + err
    answer = Answer.from_dict(json.loads(Path("choice/answer.json").read_text()))
    kept = {row.measured.candidate.model: row.measured for row in answer.of("kept")}
    assert answer.smallest.candidate.model in kept
    assert all(50 < m.memory_mb < 20000 and 0 < m.p50_ms <= m.p95_ms and 0 <= m.ap <= 1 and m.gmacs > 0 for m in kept.values())
    lines = Path("choice/journal.jsonl").read_text().splitlines()
    assert run(*words, "--rounds", 20, "--allow-noise", "--out", "choice")[0] == 0
    assert Path("choice/journal.jsonl").read_text().splitlines() == lines  # nothing was measured twice
