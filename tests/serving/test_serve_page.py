"""The page in a real browser: a picture is dropped, boxes appear, and the slider needs no second request."""

from __future__ import annotations

import base64
import json
import os
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

import rapidetr
from rapidetr.demo import write_dataset
from rapidetr.serving.app import create_app
from rapidetr.serving.limits import ServeLimits
from rapidetr.serving.served import serve_detector
from rapidetr.serving.server import Server
from rapidetr.serving.service import Service

pytestmark = pytest.mark.external
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
]  # fmt: skip
DROP = """([data, name]) => {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0)), moved = new DataTransfer();
  moved.items.add(new File([bytes], name, { type: "image/jpeg" }));
  for (const kind of ["dragenter", "dragover", "drop"])
    document.querySelector("#stage").dispatchEvent(new DragEvent(kind, { dataTransfer: moved, bubbles: true, cancelable: true }));
}"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """seg-pico behind uvicorn in a thread of this process."""
    service = Service(serve_detector(rapidetr.load("seg-pico", device="cpu")), ServeLimits(max_batch=1))
    service.warm_up(service.model)
    config = uvicorn.Config(create_app(service), port=0, log_level="warning", ws="none", http="h11")
    sock, server = config.bind_socket(), Server(config, service, 0.1)
    thread = threading.Thread(target=server.run, args=([sock],))
    thread.start()
    yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    server.end()
    thread.join()
    sock.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    path = os.environ.get("RAPIDETR_CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
    if not Path(path).exists():
        pytest.skip("no chromium; install it, or name its executable in RAPIDETR_CHROMIUM")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=path, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, permissions=["camera"])
    opened = context.new_page()
    opened.problems, opened.asked = [], []
    opened.on("pageerror", lambda problem: opened.problems.append(str(problem)))
    opened.on("console", lambda message: opened.problems.append(message.text) if message.type in ("error", "warning") else None)
    opened.on("request", lambda request: opened.asked.append(request.url) if "predict" in request.url else None)
    opened.goto(address)
    opened.locator("#card dd").first.wait_for()
    yield opened
    context.close()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Of a few rendered scenes the one with the most objects."""
    folder = tmp_path_factory.mktemp("scenes")
    write_dataset(folder, 8, 1, split="test", size_hw=(480, 640))
    (path,) = folder.rglob("_annotations.coco.json")
    record = json.loads(path.read_text())
    objects = Counter(one["image_id"] for one in record["annotations"])
    names = {one["id"]: one["file_name"] for one in record["images"]}
    return (path.parent / names[max(objects, key=lambda id: objects[id])]).read_bytes()


def shown(page: Any) -> int:
    return int(page.locator("#canvas").get_attribute("data-shown"))


def drop(page: Any, scene: bytes, name: str = "scene.jpg") -> None:
    page.evaluate(DROP, [base64.b64encode(scene).decode(), name])
    page.locator("#found li").first.wait_for()


def slide(page: Any, value: float) -> None:
    page.evaluate("(v) => { const s = document.querySelector('#threshold'); s.value = v; s.dispatchEvent(new Event('input')); }", value)


def test_drop_slide_and_filter_with_one_request(page: Any, scene: bytes) -> None:
    plain = page.evaluate("document.querySelector('#canvas').toDataURL()")
    drop(page, scene)
    slide(page, 0.3)
    few, drawn = shown(page), page.evaluate("document.querySelector('#canvas').toDataURL()")
    assert drawn != plain
    slide(page, 0.05)
    many = shown(page)
    assert many > few > 0
    page.locator("#classes button").first.click()
    assert shown(page) < many
    assert page.locator("#classes button").first.get_attribute("aria-pressed") == "false"
    page.locator("#masks").uncheck()
    slide(page, 0.95)
    assert shown(page) <= few
    assert len(page.asked) == 1
    assert page.problems == []
    assert page.locator("#legend").inner_text().count("ms") >= 5
    page.get_by_role("button", name="Python").click()
    assert 'threshold": 0.95' in page.locator("#snippet").inner_text()


def test_the_keyboard_alone(page: Any, scene: bytes) -> None:
    """Every control is reached by Tab, in the order of the page, and the slider moves by arrows."""
    drop(page, scene)
    seen = []
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
        if seen[-1] == "threshold":
            break
    assert [name for name in seen if name in ("file", "camera", "save", "copy", "threshold")] == [
        "file",
        "camera",
        "save",
        "copy",
        "threshold",
    ]
    page.keyboard.press("ArrowRight")
    assert page.locator("#threshold-value").inner_text() == "0.51"


def test_everything_has_a_name(page: Any) -> None:
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('button, input, a, canvas, section')].filter((e) =>
          !(e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') || (e.labels && e.labels.length) || e.textContent.trim()))
          .map((e) => e.outerHTML.slice(0, 80))"""
    )
    assert unnamed == []


def test_a_file_that_is_no_picture_is_told(page: Any) -> None:
    page.evaluate(DROP, [base64.b64encode(b"nothing").decode(), "x.jpg"])
    page.locator("#status.bad").wait_for()
    assert "cannot show that file" in page.locator("#status").inner_text()
    assert page.asked == []


def test_the_camera(page: Any) -> None:
    page.locator("#camera").click()
    page.get_by_text("pictures a second").wait_for()
    page.locator("#camera").click()
    assert page.locator("#camera").get_attribute("aria-pressed") == "false"
    assert page.problems == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone(browser: Any, address: str, scene: bytes, scheme: str) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 740}, color_scheme=scheme, has_touch=True)
    page = context.new_page()
    page.goto(address)
    drop(page, scene)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    context.close()


def test_a_picture_for_the_documentation(page: Any, scene: bytes, root: Path, tmp_path: Path) -> None:
    """RAPIDETR_SCREENSHOTS=1 writes docs/images/serve.png anew."""
    drop(page, scene)
    slide(page, 0.4)
    path = root / "docs" / "images" / "serve.png" if os.environ.get("RAPIDETR_SCREENSHOTS") else tmp_path / "serve.png"
    path.parent.mkdir(exist_ok=True)
    page.evaluate("document.querySelector('#status').textContent = 'scene.jpg'")
    page.screenshot(path=path)
    assert path.stat().st_size > 10_000
