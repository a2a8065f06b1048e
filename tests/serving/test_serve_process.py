"""`rapidetr serve` as its own process on loopback: it listens, follows a registry, hangs up on slow clients, and drains on SIGTERM."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from rapidetr.runtime.artifact import Manifest, write_artifact

pytestmark = pytest.mark.slow
PNG = {"content-type": "image/png"}


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    """The drill of docs/deploy.md: pico with 50 queries, in use, and with 25."""
    import rapidetr
    from rapidetr.deployment.registry import Registry
    from rapidetr.runtime.lock import weights_file

    made, source = Registry(tmp_path / "drill"), weights_file("pico")
    for queries in (50, 25):
        detector = rapidetr.load("pico", device="cpu", queries=queries)
        manifest = Manifest.of(detector, source=source, command="", parameters={"queries": queries})
        folder = write_artifact(tmp_path / f"drill-{queries}", {"best.safetensors": source}, manifest).path
        made.add(folder, baseline=True, why="drill")
    return tmp_path / "drill"


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[str], str]]]:
    """serve(*words) -> (process, address), once it listens."""
    started: list[subprocess.Popen[str]] = []

    def begin(*words: str) -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-W", "error", "-m", "rapidetr", "serve", *words, "--port", "0", "--threads", "1", "--device", "cpu"]
        with (tmp_path / "stderr").open("w") as told:
            child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=told, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        started.append(child)
        assert child.stdout
        for line in child.stdout:
            if found := re.match(r"(http://127\.0\.0\.1:\d+)/$", line):
                return child, found[1]
        raise AssertionError((tmp_path / "stderr").read_text())

    yield begin
    for child in started:
        child.kill()
        child.wait()
        assert child.stdout
        child.stdout.close()


def test_a_registry_is_followed_without_a_failed_request_until_sigterm(serve, registry: Path, picture: Callable[..., bytes]) -> None:
    from rapidetr.deployment.registry import Registry

    child, address = serve(str(registry / "current"), "--poll", "0.2", "--drain-grace", "5")
    one, two = Registry(registry).ids()
    answers: list[tuple[int, str]] = []
    stop, content = threading.Event(), picture(120, (64, 64))

    def ask() -> None:
        with httpx.Client() as client:
            while not stop.is_set():
                answer = client.post(f"{address}/v1/predict", content=content, headers=PNG, timeout=60)
                answers.append((answer.status_code, answer.json().get("model", answer.text)))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    with httpx.Client() as client:
        for action, id in ((lambda: Registry(registry).promote(two), two), (lambda: Registry(registry).rollback(), one)):
            action()
            until = time.monotonic() + 120
            while client.get(f"{address}/readyz", timeout=60).json()["model"] != id:
                assert time.monotonic() < until
                time.sleep(0.1)
        assert client.get(f"{address}/v1/model").json()["queries"] == 50
        stop.set()
        for thread in threads:
            thread.join()
        child.send_signal(signal.SIGTERM)
        while client.get(f"{address}/readyz", timeout=60).status_code == 200:
            assert child.poll() is None
        while_draining = client.post(f"{address}/v1/predict", content=content, headers=PNG, timeout=60)
    assert while_draining.status_code == 200
    assert {status for status, _ in answers} == {200}, answers[-3:]
    assert {model for _, model in answers} == {one, two}
    assert child.wait(60) == 0
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), 5).close()


def test_slow_and_large_and_one_more_page(serve, picture: Callable[..., bytes], tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a-key-of-this-test\n")
    child, address = serve("pico", "--body-timeout", "0.5", "--max-body-mb", "1", "--api-key-file", str(tmp_path / "keys"))
    key = {"authorization": "Bearer a-key-of-this-test"}
    with httpx.Client(base_url=address, headers=key, timeout=60) as client:
        large = client.post("/v1/predict", content=b"x" * 1_500_000, headers=PNG)
        assert (large.status_code, large.json()["error"]) == (413, "TooLarge")
        assert client.post("/v1/predict", content=picture(), headers=PNG).status_code == 200
        assert "Drop a picture here" in client.get("/").text
        assert httpx.get(f"{address}/v1/model").status_code == 401
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), 60) as wire:
        head = ["POST /v1/predict HTTP/1.1", "Host: x", f"Authorization: {key['authorization']}", "Content-Type: image/png"]
        wire.sendall("\r\n".join([*head, "Content-Length: 1000", "", "only some bytes"]).encode())
        told = b"".join(iter(lambda: wire.recv(65536), b""))
    assert told.startswith(b"HTTP/1.1 408 ")
    assert json.loads(told.partition(b"\r\n\r\n")[2])["error"] == "TooSlow"
    child.send_signal(signal.SIGINT)
    assert child.wait(60) == 0
    assert (tmp_path / "stderr").read_text() == ""
