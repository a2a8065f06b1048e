"""Packages in Roboflow's real client, offline: the same detections as ours. `tools/roboflow_env.sh` makes its environment."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.external
CASES = {
    "pico": 8,
    "pico 224x352": 8,
    "seg-pico": 8,
    "COCO gaps": 80,
    "nano torch": 3,
    "seg-nano torch, COCO gaps": 80,
}  # and their classes


@pytest.fixture(scope="module")
def client(root: Path) -> Path:
    python = root / ".venv-roboflow" / "bin" / "python"
    if not python.exists():
        pytest.skip("Roboflow's client is not here; make its environment with: tools/roboflow_env.sh .venv-roboflow")
    return python


@pytest.mark.parametrize("case", CASES)
def test_the_client_finds_what_we_find(root: Path, client: Path, tmp_path: Path, case: str) -> None:
    words = [sys.executable, root / "benchmarks" / "roboflow_client.py", "--client", client, "--out", tmp_path / "r.json", "--only", case]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "r.json").read_text())["cases"][case]
    assert (record["same_classes"], record["classes"]) == (True, CASES[case])
    assert record["detections"] == record["client_detections"] > 3
    worst = record["largest_difference"]
    assert worst["score"] < 1e-4  # fp32 in two runtimes
    assert worst["box_px"] < 0.51  # whole pixels there
    assert worst.get("mask_part", 0.0) < 1e-3  # pixels whose logit is rounding away from 0
