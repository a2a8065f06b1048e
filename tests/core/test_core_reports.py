"""Reports go to JSON and back, and refuse what is not theirs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rapidetr.core.errors import ConfigError
from rapidetr.core.reports import SCHEMA, BenchReport, BenchRow, Latency, find_row

STILL = Latency.measure([[20.0, 21.0, 22.0]] * 20)
ROW = BenchRow(
    model="nano", artifact="mine.safetensors", size_hw=(384, 512), decoder_layers=2, queries=300, gmacs=20.4,
    engine="torch", precision="float32", device="cpu", threads=2, batch=1, streams=1, prefetch=0, load="closed", rate=None,
    file_cache="warm",
    stages={"run": STILL, "total": STILL}, unaccounted=0.001, images_per_second=47.5, totals_ms=((20.0, 21.0, 22.0),) * 20,
    forward_only=STILL, cold_start_s=None, compile_s=0.0, peak_process_mb=500.0, peak_device_mb=None,
    noise={"usable": True, "reasons": [], "notes": []}, usable=True, reasons=("a note",),
)  # fmt: skip
REPORT = BenchReport(
    schema=SCHEMA, created="2026-01-01T00:00:00+00:00", command="rapidetr bench", environment={"device": "cpu"}, artifact_sha256="00",
    dataset={"path": "photos", "sha256": "11", "pictures": 4, "split": None}, ap=None, published=None, rows=(ROW, replace(ROW, batch=2)),
)  # fmt: skip


def test_percentiles_without_enough_runs_are_absent() -> None:
    assert (STILL.count, STILL.p50, STILL.p95, STILL.p99, STILL.max) == (60, 21.0, 22.0, None, 22.0)
    few = Latency.measure([1.0, 2.0, 3.0])
    assert (few.p50, few.p90, few.p95, few.p95_interval, few.max) == (2.0, None, None, None, 3.0)
    assert Latency.measure([[float(i)] * 3 for i in range(1, 101)]).p99 is not None


def test_reports_go_to_json_and_back(tmp_path: Path) -> None:
    again = BenchReport.from_dict(json.loads(json.dumps(REPORT.to_dict())))
    assert again == REPORT
    assert again.rows[0].size_hw == (384, 512)
    assert BenchReport.read(REPORT.write(tmp_path / "deep" / "report.json")) == REPORT
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["report.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": "1"}, "BenchRow: batch is '1'; expected int"),
        ({"batch": True}, "BenchRow: batch is True; expected int"),
        ({"usable": 1}, "BenchRow: usable is 1; expected bool"),
        ({"rate": "fast"}, r"BenchRow: rate is 'fast'; expected float \| None"),
        ({"speed": 3}, r"BenchRow: missing \[\], unknown \['speed'\]; measure again"),
        ({"stages": {"total": 5}}, r"Latency: missing \['count', "),
    ],
)
def test_other_records_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        BenchRow.from_dict({**ROW.to_dict(), **change})


def test_files_are_named_in_what_is_wrong_with_them(tmp_path: Path) -> None:
    old, none, text = tmp_path / "old.json", tmp_path / "none.json", tmp_path / "text.json"
    old.write_text(json.dumps({**REPORT.to_dict(), "schema": "rapidetr.bench/0"}))
    text.write_text("hello")
    with pytest.raises(ConfigError, match=r"old\.json: report has schema 'rapidetr\.bench/0'; expected rapidetr\.bench/1"):
        BenchReport.read(old)
    for path in (none, text):
        with pytest.raises(ConfigError, match=rf"{path.name}: expected a report that `rapidetr bench` wrote"):
            BenchReport.read(path)


def test_the_table_has_a_cell_for_each_head_and_shows_what_is_missing() -> None:
    heads, rows = REPORT.to_table()
    assert all(len(row) == len(heads) for row in rows)
    told = dict(zip(heads, rows[0], strict=True))
    assert (told["p50 ms"], told["p95"], told["p99"], told["usable"]) == ("21.00", "22.00", "-", "yes")
    assert replace(ROW, load="open", rate=2.5).setting == "batch 1, streams 1, prefetch 0, threads 2, open 2.5/s"


def test_rows_meet_by_their_load() -> None:
    assert find_row(REPORT.rows, replace(ROW, model="other", size_hw=(32, 32), batch=2)) is REPORT.rows[1]
    assert find_row(REPORT.rows, replace(ROW, threads=1)) is None
