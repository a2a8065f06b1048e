"""Requests that nobody meant to send: always an answer that says why, never a 5xx, and nothing is left behind.

benchmarks/serve_malformed.py sends ten thousand of them, and those that are no HTTP, to a server in its own process.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest


@pytest.fixture
def source(root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any], bytes], Any]:
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    from serve_requests import Source

    return Source


@pytest.mark.parametrize("part", range(2))
def test_malformed_requests(start: Callable[..., Any], picture: Callable[..., bytes], source: Callable[..., Any], part: int) -> None:
    client, service = start(max_pixels=100_000)
    drawn_from = source(client.get("/openapi.json").json(), picture(format="JPEG"))
    seen = Counter[tuple[str, int]]()
    for number in range(300):
        request = drawn_from.draw(random.Random(f"{part}/{number}"))
        if request.wire is not None:
            continue
        url = httpx.URL("http://test", raw_path=request.target.encode())
        answer = client.request(request.method, url, content=request.body, headers=request.headers)
        seen[request.kind, answer.status_code] += 1
        assert answer.status_code == 200 if request.kind == "good" else answer.status_code in (200, 307, 400, 404, 405, 413, 415, 422)
        if answer.status_code >= 400 and request.method != "HEAD":
            assert set(answer.json()) == {"error", "message"}
            assert "\n" not in answer.json()["message"]
    assert {kind for kind, _ in seen} == {"good", "options", "json", "form", "picture", "elsewhere", "headers"}
    assert {400, 404, 405, 415, 422} <= {status for _, status in seen}
    assert seen["options", 422] > 0 < seen["options", 200]
    assert (service.batcher.held, service.batcher.waiting) == (0, 0)
    assert client.post("/v1/predict", content=picture(), headers={"content-type": "image/png"}).status_code == 200
