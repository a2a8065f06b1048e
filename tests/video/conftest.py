"""Small videos with a red block that moves over a rendered scene, and a detector that finds red blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import av
import numpy as np
import pytest

from rapidetr.core.detections import Detections
from rapidetr.core.labels import LabelSpace
from rapidetr.demo import render_scene

LABELS = LabelSpace.contiguous(["car", "bus"])
BLOCK = 24  # pixels a side
STEP = 3  # pixels that it moves a frame, to the right


class RedFinder:
    """Stands for a Detector: one "car" where a picture is red."""

    labels = LABELS
    notes = ()
    license = "Apache-2.0"
    config = type("Config", (), {"name": "red-finder"})

    def __init__(self) -> None:
        self.batches: list[int] = []

    def predict(self, pictures, threshold=0.5, *, batch_size=1, **options):
        self.batches.append(len(pictures))
        return [self.look(picture.pixels) for picture in pictures]

    def look(self, pixels: np.ndarray) -> Detections:
        red = (pixels[..., 0] > 170) & (pixels[..., 1] < 90) & (pixels[..., 2] < 90)
        ys, xs = np.nonzero(red)
        if len(xs) < BLOCK:
            return Detections.empty(LABELS, pixels.shape[:2])
        box = np.array([[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]], np.float32)
        return Detections(box, np.array([0.9], np.float32), np.array([0]), LABELS, pixels.shape[:2])


def picture(i: int, size_hw: tuple[int, int]) -> np.ndarray:
    pixels = render_scene(5, size_hw=size_hw).pixels // 3  # dark: nothing in it is as red as the block
    pixels[30 : 30 + BLOCK, 4 + STEP * i : 4 + STEP * i + BLOCK] = (230, 20, 20)
    return pixels


@pytest.fixture
def finder() -> RedFinder:
    return RedFinder()


@pytest.fixture(scope="session")
def pictures() -> list[np.ndarray]:
    base = picture(0, (96, 128))
    return [base, *(picture(i, (96, 128)) for i in range(1, 24))]


@pytest.fixture
def make_video(tmp_path: Path, pictures: list[np.ndarray]) -> Callable[..., Path]:
    """make_video(name, times=..., rate=..., rotation=..., sound=...) -> a path; `times` are pts in units of 1 / rate."""

    def make(
        name: str = "red.mp4",
        *,
        times: Iterable[int] | None = None,
        rate: int = 12,
        rotation: int = 0,
        sound: str = "",
        shown: list[np.ndarray] | None = None,
    ) -> Path:
        path, shown = tmp_path / name, shown or pictures
        options = {"movflags": "faststart"} if path.suffix == ".mp4" else {}
        with av.open(str(path), "w", options=options) as container:
            stream = container.add_stream("mpeg4" if path.suffix == ".avi" else "libx264", rate=rate, options={"crf": "12", "g": "6"})
            stream.height, stream.width = shown[0].shape[:2]
            stream.pix_fmt = "yuv444p" if shown[0].shape[1] % 2 else "yuv420p"  # odd sides
            if rotation:
                stream.set_display_rotation(rotation)
            voice = container.add_stream(sound, rate=48000, layout="mono") if sound else None
            for i, at in zip(range(len(shown)), times or range(len(shown)), strict=False):
                frame = av.VideoFrame.from_ndarray(shown[i], "rgb24")
                frame.pts, frame.time_base = at, Fraction(1, rate)
                container.mux(stream.encode(frame))
                if voice:
                    wave = (np.sin(np.arange(48000 // rate) / 20) / 2).astype(np.float32)[None]
                    heard = av.AudioFrame.from_ndarray(wave, "fltp", "mono")
                    heard.sample_rate, heard.pts, heard.time_base = 48000, at * 48000 // rate, Fraction(1, 48000)
                    container.mux(voice.encode(heard))
            for one in filter(None, (stream, voice)):
                container.mux(one.encode())
        return path

    return make


@pytest.fixture
def serve(tmp_path: Path):
    """serve(handler class) -> address of a loopback server of the test's folder."""
    servers = []

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    def start(handler=Quiet) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(tmp_path)))
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    start.quiet = Quiet
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
