"""The page shows the numbers of the JSON and carries them; the fresh process and the peaks of memory."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from html import unescape

import pytest
from known_times import PICTURES, Time, instruments, jitter, steady

from rapidetr.bench import memory
from rapidetr.bench.cold import time_cold_start
from rapidetr.bench.loads import LoadShape
from rapidetr.bench.report import render_report
from rapidetr.bench.runner import Plan, assemble, measure_rows
from rapidetr.core.errors import ConfigError
from rapidetr.core.reports import BenchReport

AP = {"split": "valid", "pictures": 4, "resize": "predict", "max_dets": 100, "boxes": {"AP": 0.4321}, "masks": None}
PUBLISHED = {"model": "nano", "ms": 2.3, "ap": 48.4, "of": "boxes", "scope": "T4, TensorRT fp16, forward only"}


@pytest.fixture(scope="module")
def report() -> BenchReport:
    time = Time()
    slow = steady(time, jitter(1), prepare_s=0.003)
    shapes = [LoadShape(), LoadShape(batch=2), LoadShape(rate=30.0)]
    rows = list(measure_rows(slow, "mine", PICTURES, shapes, Plan(), cold_start_s=4.5, instruments=instruments(time)))
    data = {"path": "<photos>", "sha256": None, "pictures": 4, "split": "valid"}
    return assemble(rows, command="rapidetr bench mine", dataset=data, ap=AP, published=PUBLISHED)


def test_numbers_of_the_page_are_those_of_the_json(report: BenchReport) -> None:
    page = render_report(report)
    (held,) = re.findall(r'<script type="application/json" id="record">(.*?)</script>', page, re.S)
    assert BenchReport.from_dict(json.loads(held)) == report
    cells = [unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", page)]
    for row in report.rows:
        for latency in (row.total.p50, row.total.p95, row.forward_only.p50, *(s.mean for s in row.stages.values())):
            assert f"{latency:.2f}" in cells
        assert f"{row.images_per_second:.2f}" in cells
    text = unescape(re.sub(r"<script.*", "", page, flags=re.S))
    assert "A fresh process needs 4.50 s until its first detection." in text
    assert "Published for nano: 2.3 ms and AP 48.4 % of boxes (T4, TensorRT fp16, forward only)." in text
    assert f"Our forward alone takes {report.rows[0].forward_only.p50:.2f} ms" in text
    assert "AP of boxes 0.4321 on 4 pictures (valid), same artifact, same `predict`." in text
    assert "<photos>" in text
    assert page.count("<img ") == 4
    assert "http" not in re.sub(r"data:image/[^\"]*", "", re.sub(r"<script.*?</script>", "", page, flags=re.S))


def test_a_page_says_what_is_not_known_and_not_usable(report: BenchReport) -> None:
    bad = replace(report.rows[0], usable=False, reasons=("CPU too warm",))
    page = unescape(render_report(replace(report, rows=(bad,), ap=None, published=None)))
    assert f"NOT USABLE: {bad.setting}: CPU too warm." in page
    assert "No annotations were given, so accuracy is not known." in page
    assert "No arrival rates were asked for" in page
    assert page.count("<img ") == 3


def test_a_fresh_process_is_timed_until_its_first_detections() -> None:
    asked = []

    def run(arguments: str) -> subprocess.CompletedProcess[str]:
        asked.append(json.loads(arguments))
        return subprocess.CompletedProcess([], 0, "a notice\n105.25\n", "")

    assert time_cold_start("nano", "a.jpg", {"size_hw": (64, 96)}, run=run, now=lambda: 100.0) == 5.25
    assert asked == [["nano", "a.jpg", {"size_hw": [64, 96]}]]
    failed = subprocess.CompletedProcess([], 1, "", "Traceback\nImageMissing: a.jpg is not there\n")
    with pytest.raises(ConfigError, match=r"^a fresh process could not predict a\.jpg with nano: ImageMissing: a\.jpg is not there$"):
        time_cold_start("nano", "a.jpg", {}, run=lambda arguments: failed)


def test_the_peak_of_memory_is_the_one_since_it_was_forgotten() -> None:
    if not memory.CLEAR.exists():
        pytest.skip("this system cannot forget peaks of memory")
    code = (
        "import numpy as np; from rapidetr.bench import memory; np.ones(40_000_000); memory.forget_peaks('cpu');"
        "before = memory.peak_process_mb(); held = np.ones(10_000_000); print(memory.peak_process_mb() - before)"
    )
    grown = float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert 70 < grown < 90  # 80 MB; the 320 MB from before must not count
    assert memory.peak_device_mb("cpu") is None
