"""Every command and every line of Python in the README is run, in order, in one folder with a photo and a few pictures."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rapidetr.demo import write_dataset

pytestmark = pytest.mark.slow
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```\n(?:<!-- (not run|weights): (.+?) -->)?", re.M | re.S)


def blocks(root: Path) -> list[tuple[str, str, str]]:
    return [(kind, body, mark or "") for kind, body, mark, _ in BLOCK.findall((root / "README.md").read_text(encoding="utf-8"))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("readme")
    rng = np.random.default_rng(0)
    for name in ("street.jpg", "photos/a.jpg", "photos/b.png", "more/c.png"):
        (here / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8).repeat(4, 0).repeat(4, 1)).save(here / name)
    write_dataset(here / "scenes", 4, 1, split="test", size_hw=(160, 160))
    return here


def run(command: list[str], folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    offline = {"RAPIDETR_OFFLINE": "1", "RAPIDETR_HOME": str(folder / "cache"), "HOME": str(folder)}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, **offline, **env})


def test_readme_commands_run(root: Path, folder: Path) -> None:
    """Commands that need official weights are run without network: they must fail for that reason alone."""
    ran = {"sh": 0, "python": 0, "weights": 0}
    for kind, body, mark in blocks(root):
        if mark == "not run":
            continue
        if kind == "python":
            done = run([sys.executable, "-W", "error", "-c", body], folder)
            assert done.returncode == 0, f"{body}\n{done.stderr}"
            ran["python"] += 1
            continue
        for line in body.strip().splitlines():
            done = run([sys.executable, "-m", *shlex.split(line, comments=True)], folder)
            if mark == "weights":
                assert done.returncode == 2, f"{line}\n{done.stderr}"
                assert "rf-detr-nano.pth" in done.stderr
                ran["weights"] += 1
            else:
                assert done.returncode == 0, f"{line}\n{done.stderr}"
                ran["sh"] += 1
    assert ran["sh"] >= 5
    assert ran["python"] >= 1
    assert ran["weights"] >= 1
    assert (folder / "results.json").exists()
    assert len(list((folder / "results").glob("*"))) >= 4
    assert (folder / "out.png").exists()


def test_links_of_the_documentation_lead_somewhere(root: Path) -> None:
    for page in [root / "README.md", root / "CONTRIBUTING.md", *(root / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if not target.startswith(("http://", "https://")):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_demo_detects_measures_and_learns(root: Path, folder: Path) -> None:
    """As `make demo` runs it, without network: figures of the shipped model, every stage timed, and a gain."""
    done = run([sys.executable, str(root / "examples" / "demo.py"), "--out", str(folder / "demo")], folder)
    assert done.returncode == 0, done.stderr
    assert "This world is rendered" in done.stdout
    assert "rapidetr predict photo.jpg --model nano" in done.stdout
    record = json.loads((folder / "demo" / "demo.json").read_text())
    with Image.open(folder / "demo" / "detections.png") as drawn:
        assert drawn.size == (288, 288)
    assert set(record["detect"]["stages_ms"]) == {"read", "decode", "prepare", "transfer", "run", "select", "total"}
    assert all(0 <= t["p50"] <= t["p95"] for t in record["detect"]["stages_ms"].values())
    assert f"AP50:95 {record['detect']['AP']:.3f}" in done.stdout
    assert record["fine_tune"]["AP"]["after"] - record["fine_tune"]["AP"]["before"] >= 0.05
