"""A server around an engine that says what its input says, and that waits where a test wants it to."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import httpx
import numpy as np
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from fastapi import FastAPI
from PIL import Image

from rapidetr.core.clock import StageClock
from rapidetr.core.config import variant
from rapidetr.core.labels import LabelSpace
from rapidetr.core.outputs import Batch, Geometry, RawOutput
from rapidetr.core.preprocessing import Preprocessing
from rapidetr.pixels.prepare import prepare
from rapidetr.runtime.artifact import Facts
from rapidetr.runtime.detector import Detector
from rapidetr.serving.app import create_app
from rapidetr.serving.limits import ServeLimits
from rapidetr.serving.served import Served, serve_detector
from rapidetr.serving.service import Service


class ToldEngine:
    """Finds in each picture a cat (score 0.9) over its left half, and a dog whose score is the brightness of the picture."""

    name, device, precision, size_hw = "told", "cpu", "float32", (32, 32)

    def __init__(self, *, masks: bool = False) -> None:
        self.masks = masks
        self.open = threading.Event()  # closed, `run` waits
        self.open.set()
        self.entered = threading.Semaphore(0)
        self.sizes: list[int] = []
        self.problem: Exception | None = None

    def prepare(
        self, pictures: Sequence[np.ndarray], preprocessing: Preprocessing, filter: str, geometries: Sequence[Geometry] | None
    ) -> Batch:
        return prepare(pictures, self.size_hw, preprocessing, filter=filter, geometries=geometries)

    def run(self, pixels: Any, clock: StageClock | None = None) -> RawOutput:
        self.sizes.append(len(pixels))
        self.entered.release()
        assert self.open.wait(20)
        if self.problem:
            raise self.problem
        bright = np.clip(pixels.mean(axis=(1, 2, 3)), 0.01, 0.99)
        logits = np.full((len(pixels), 2, 4), -20.0, np.float32)
        logits[:, 0, 0], logits[:, 1, 1] = np.log(9), np.log(bright / (1 - bright))
        boxes = np.tile(np.array([[[0.25, 0.5, 0.5, 1.0], [0.5, 0.5, 1.0, 1.0]]], np.float32), (len(pixels), 1, 1))
        masks = (
            np.where(np.arange(8) < 4, 1.0, -1.0).astype(np.float32) * np.ones((len(pixels), 2, 8, 1), np.float32) if self.masks else None
        )
        return RawOutput(logits, boxes, masks)


@pytest.fixture
def engine() -> ToldEngine:
    return ToldEngine()


@pytest.fixture
def make_served() -> Callable[..., Served]:
    """make_served(engine) -> a Served whose brightness is that of the picture, 0..1."""

    def make(engine: ToldEngine, id: str = "") -> Served:
        config = replace(variant("nano"), name="told", class_rows=4)
        plain = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        served = serve_detector(Detector(engine, Facts(config, LabelSpace.contiguous(["cat", "dog", "7"]), plain, "Apache-2.0")))
        served.id = id or served.id
        return served

    return make


class Client:
    """httpx for an app in this process; any thread may call it."""

    def __init__(self, app: FastAPI, portal: BlockingPortal) -> None:
        self.app, self.portal = app, portal
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://test", timeout=30)

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self.portal.call(partial(self.http.request, method, path, **options))

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.request("POST", path, **options)


@pytest.fixture
def start(engine: ToldEngine, make_served: Callable[..., Served]) -> Iterator[Callable[..., tuple[Client, Service]]]:
    """start(limits..., keys=..., fetch=...) -> (client, service); ended after the test."""
    with ExitStack() as stack:

        def begin(*, keys: Sequence[bytes] = (), model: Served | None = None, now: Any = None, fetch: Any = None, **limits: Any) -> Any:
            more: dict[str, Any] = {"now": now} if now else {}
            if fetch:
                more |= {"fetch": fetch, "fetch_urls": True}
            service = Service(model or make_served(engine), ServeLimits(**limits), **more)
            app = create_app(service, keys=keys)
            portal = stack.enter_context(start_blocking_portal())
            stack.enter_context(portal.wrap_async_context_manager(app.router.lifespan_context(app)))
            return Client(app, portal), service

        yield begin
        engine.open.set()


def encoded(brightness: int = 128, size_hw: tuple[int, int] = (20, 30), format: str = "PNG") -> bytes:
    """A file with a picture of one gray."""
    out = io.BytesIO()
    Image.fromarray(np.full((*size_hw, 3), brightness, np.uint8)).save(out, format)
    return out.getvalue()


@pytest.fixture
def picture() -> Callable[..., bytes]:
    return encoded
