"""The exported pico in ONNX Runtime Web, in a real browser: the page of examples/web finds what the Python package finds."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from PIL import Image

import rapidetr
from rapidetr.core.detections import Detections
from rapidetr.demo.world import render_scene
from rapidetr.deployment.export_onnx import export_onnx
from rapidetr.pixels.prepare import resize_antialiased
from rapidetr.runtime.host import describe_processor

SIZES_HW, THRESHOLD, RUNS = [(480, 640), (640, 480), (200, 300), (288, 288)], 0.3, 10
# The input is the same byte for byte, so only the order of fp32 sums differs between wasm and torch. Between torch and ONNX
# Runtime scores were seen to differ by 1.5e-6 and boxes by 2.5e-4 pixels (640 wide); ten times that is still rounding.
SCORE, BOX_PX = 1.5e-5, 2.5e-3
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

pytestmark = pytest.mark.external


class Handler(SimpleHTTPRequestHandler):
    """The page, and what one test made, under one address; with the headers without which a page gets no threads."""

    def __init__(self, *args: Any, made: Path, **options: Any) -> None:
        self.made = made
        super().__init__(*args, **options)

    def translate_path(self, path: str) -> str:
        made = self.made / Path(path.partition("?")[0]).name
        return str(made) if made.is_file() else super().translate_path(path)

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def runtime(root: Path) -> dict[str, Any]:
    """package.json of the installed onnxruntime-web."""
    package = root / "examples" / "web" / "node_modules" / "onnxruntime-web" / "package.json"
    if not package.is_file():
        pytest.skip("onnxruntime-web is not installed: npm ci --prefix examples/web")
    return json.loads(package.read_text())


@pytest.fixture
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install 'rapidetr[test]'")
    chromium = os.environ.get("RAPIDETR_CHROMIUM", "/usr/bin/chromium")
    if not Path(chromium).is_file():
        pytest.skip(f"no browser at {chromium}: apt-get install chromium, or name one in RAPIDETR_CHROMIUM")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def address(root: Path, tmp_path: Path) -> Iterator[str]:
    handler = partial(Handler, made=tmp_path, directory=str(root / "examples" / "web"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_the_browser_finds_the_same_boxes(root: Path, tmp_path: Path, runtime: dict[str, Any], browser: Any, address: str) -> None:
    detector = rapidetr.load("pico", device="cpu")
    export_onnx(detector, tmp_path / "pico.onnx", inputs="uint8", outputs="final")
    scenes = [render_scene(seed, size_hw=size).pixels for seed, size in enumerate(SIZES_HW)]
    for i, pixels in enumerate(scenes):
        Image.fromarray(pixels).save(tmp_path / f"scene{i}.png")
    page = browser.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda problem: problems.append(str(problem)))
    page.goto(f"{address}/index.html?threads=2")
    page.evaluate("ready")
    assert page.evaluate("crossOriginIsolated") is True
    shifts = []
    for i, pixels in enumerate(scenes):
        same_bytes(page, pixels, f"scene{i}.png", detector.size_hw)
        answer = page.evaluate("showAddress", f"scene{i}.png")
        shifts.append(compared(answer, detector.predict(pixels, THRESHOLD)[0]))
    assert sum(count for count, _, _ in shifts) >= 5
    assert "wasm with 2 threads" in page.text_content("#status")
    rows = page.locator("#found tr").count()
    assert rows == len(detector.predict(scenes[-1], 0.5)[0])
    times = page.evaluate(
        "async (n) => { const all = []; for (let i = 0; i < n; i++) all.push((await detect(shown.picture.pixels)).run_ms); return all; }",
        RUNS,
    )
    screenshot = os.environ.get("RAPIDETR_SCREENSHOT")
    if screenshot:
        page.evaluate("showAddress", "scene0.png")
        page.screenshot(path=screenshot, full_page=True)
    assert problems == []
    processor = describe_processor(Path("/"))
    record = {
        "what": "browser_pico",
        "date": datetime.now(UTC).date().isoformat(),
        "model": f"pico {detector.size_hw[0]}x{detector.size_hw[1]}, uint8 in, best pairs out",
        "backend": "wasm",
        "threads": page.evaluate("ort.env.wasm.numThreads"),
        "versions": {"rapidetr": rapidetr.__version__, "onnxruntime-web": runtime["version"], "chromium": browser.version},
        "hardware": processor,
        "pictures": len(scenes),
        "detections": sum(count for count, _, _ in shifts),
        "same_input_bytes": True,
        "max_score_difference": max(score for _, score, _ in shifts),
        "max_box_difference_px": max(box for _, _, box in shifts),
        "limits": {"score": SCORE, "box_px": BOX_PX},
        "run_ms": {"runs": RUNS, "median": float(np.median(times)), "least": min(times), "most": max(times)},
    }
    path = root / "benchmarks" / f"browser_pico_{record['date']}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def same_bytes(page: Any, pixels: np.ndarray, name: str, size_hw: tuple[int, int]) -> None:
    """The page's own resize gives what Pillow gives, byte for byte."""
    script = "async ([name, size]) => Array.from(resize((await read(await (await fetch(name)).blob())).pixels, size))"
    found = np.array(page.evaluate(script, [name, list(size_hw)]), np.uint8).reshape(*size_hw, 3)
    np.testing.assert_array_equal(found, resize_antialiased(pixels, size_hw))


def compared(answer: dict[str, Any], wanted: Detections) -> tuple[int, float, float]:
    """(detections, largest difference of scores, of box sides in pixels) above the threshold; the same classes in the same order."""
    found = [one for one in answer["found"] if one["score"] > THRESHOLD]
    assert answer["size"] == list(wanted.image_hw)
    assert [one["name"] for one in found] == list(wanted.class_names)
    if not found:
        return 0, 0.0, 0.0
    score = np.abs(np.array([one["score"] for one in found]) - wanted.scores).max()
    box = np.abs(np.array([one["box"] for one in found]) - wanted.boxes_xyxy_px).max()
    assert score <= SCORE
    assert box <= BOX_PX
    return len(found), float(score), float(box)


def test_a_file_of_another_kind_is_refused(tmp_path: Path, runtime: dict[str, Any], browser: Any, address: str) -> None:
    (tmp_path / "other.onnx").write_bytes(b"\x08\x0a")  # ir_version 10 and nothing else
    page = browser.new_page()
    for model, message in (
        ("other.onnx", "the file holds no rapidetr metadata; export it with rapidetr"),
        ("absent.onnx", "absent.onnx: 404 File not found; export a model to this folder first"),
    ):
        page.goto(f"{address}/index.html?model={model}")
        page.wait_for_selector("#status.failed")
        assert page.text_content("#status") == message
        assert page.locator("#file").is_disabled()
