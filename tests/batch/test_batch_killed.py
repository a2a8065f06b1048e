"""`rapidetr batch` killed with SIGKILL in the middle, and started again: with Ray and without."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from rapidetr.batch.job import Job, finish, read_results
from rapidetr.batch.predictor import Predictor
from rapidetr.batch.run import run_here


def parts(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "parts").iterdir())}


@pytest.mark.parametrize("engine", [pytest.param("local", marks=pytest.mark.slow), pytest.param("ray", marks=pytest.mark.external)])
def test_a_killed_job_goes_on_where_it_was(
    start: Callable[..., tuple[Job, Predictor]], scenes: Path, tiny: Path, tmp_path: Path, engine: str
) -> None:
    """Killed when two shards are done; in the end every picture is there once, and what was done is not done again."""
    job, predictor = start(scenes, out=tmp_path / "plain", shard_size=2)
    finish(job, list(run_here(job, predictor)))
    out = tmp_path / "out"
    options = f"--model {tiny} --threshold 0.1 --engine {engine} --shard-size 2 --batch-size 2 --device cpu --json".split()
    command = [sys.executable, "-m", "rapidetr", "batch", str(scenes), "--out", str(out), *options]
    with (tmp_path / "log").open("w") as log:
        driver = subprocess.Popen(command, stdout=log, stderr=log)
    family: list[psutil.Process] = []
    while driver.poll() is None and len(list(out.glob("parts/*.jsonl"))) < 2:
        family = psutil.Process(driver.pid).children(recursive=True)
        time.sleep(0.02)
    assert driver.poll() is None, (tmp_path / "log").read_text()
    driver.kill()
    driver.wait()
    _, left = psutil.wait_procs(family, timeout=20)
    for process in left:  # Ray takes its processes with it, some of them late
        with suppress(psutil.NoSuchProcess):
            process.kill()
    done = {path.name for path in (out / "records").glob("[0-9]*.json") if json.loads(path.read_text())["state"] == "done"}
    assert 1 <= len(done) < 21  # the kill may come between a result file and its record
    when = {name: (out / "records" / name).stat().st_mtime_ns for name in done}
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 1, again.stderr  # the broken picture
    document = json.loads(again.stdout.splitlines()[-1])
    assert (document["predicted"], document["failed"], document["shards_done_before"]) == (40, 1, len(done))
    assert {name: (out / "records" / name).stat().st_mtime_ns for name in done} == when
    assert parts(out) == parts(tmp_path / "plain")
    ids = [row["id"] for row in read_results(str(out))]
    assert len(ids) == len(set(ids)) == 40
