"""The app of `examples/deploy` on Ray Serve: one replica on a local cluster that listens on loopback, asked, and taken down."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

import rapidetr

pytestmark = pytest.mark.external
DRIVER = """
import sys
from rapidetr.batch.run import Pool, cluster
with cluster(Pool()):
    from ray import serve
    from ray_serve_app import app
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(app({"model": "pico"}))
    print("it listens", flush=True)
    sys.stdin.read()
    serve.shutdown()
"""


@pytest.fixture
def served(root: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """(the driver, which ends when its stdin does; the address of its replica)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "PYTHONPATH": str(root / "examples" / "deploy")}  # replicas look for the app there
    with (tmp_path / "log").open("w") as log:
        words = [sys.executable, "-c", DRIVER, str(port)]
        driver = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=env)
    assert driver.stdin
    assert driver.stdout
    with driver.stdin, driver.stdout:
        try:
            if not any(line == "it listens\n" for line in driver.stdout):
                raise AssertionError((tmp_path / "log").read_text())
            yield driver, f"http://127.0.0.1:{port}"
        finally:
            driver.kill()  # Ray's processes end with it
            driver.wait()


def test_a_replica_answers_as_predict_does(served: tuple[subprocess.Popen[str], str], scenes: Path) -> None:
    driver, address = served
    photo = next(path for path in sorted(scenes.glob("*.jpg")) if path.name != "broken.jpg")
    expected = rapidetr.load("pico", device="cpu").predict(photo, 0.1)[0]
    with httpx.Client(base_url=address, timeout=120) as client:
        assert client.get("/healthz").json() == {"alive": True}
        assert client.get("/readyz").json()["ready"] is True
        answer = client.post("/v1/predict", content=photo.read_bytes(), headers={"content-type": "image/jpeg"}, params={"threshold": 0.1})
        assert answer.status_code == 200, answer.text
        broken = client.post("/v1/predict", content=b"no picture", headers={"content-type": "image/jpeg"})
    assert (broken.status_code, broken.json()["error"]) == (422, "ImageError")
    (found,) = answer.json()["images"]
    assert len(found["detections"]) == len(expected) > 0
    for got, want in zip(found["detections"], expected.to_dict()["detections"], strict=True):
        # another number of threads adds in another order
        assert got["class_name"] == want["class_name"]
        assert got["score"] == pytest.approx(want["score"], abs=1e-5)
        assert got["box_xyxy_px"] == pytest.approx(want["box_xyxy_px"], abs=1e-3)
    family = psutil.Process(driver.pid).children(recursive=True)
    assert family
    assert driver.stdin
    driver.stdin.close()
    assert driver.wait(120) == 0
    _, left = psutil.wait_procs(family, timeout=20)
    assert left == []
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), 5).close()
