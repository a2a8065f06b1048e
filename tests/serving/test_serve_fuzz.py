"""Bodies that nobody meant to send: always an answer that says why, never a 5xx, and nothing is left behind."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

KINDS = [
    "image/jpeg",
    "application/octet-stream",
    "application/json",
    "multipart/form-data; boundary=b",
    "multipart/form-data",
    "text/plain",
    "",
    "é",
]
STARTS = [
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"GIF89a",
    b"RIFF\x00\x00\x00\x00WEBPVP8 ",
    b"BM",
    b"II*\x00",
    b"P6\n9 9\n255\n",
    b"\x00\x00\x00\x1cftypavif",
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
OPTIONS = st.dictionaries(
    st.sampled_from(["threshold", "classes", "max_detections", "masks", "deadline_ms", "images", "urls"]), JSON, max_size=4
)
PART = b'--b\r\nContent-Disposition: form-data; name="f"; filename="%s"\r\n\r\n%s\r\n'


def bodies(good: bytes) -> st.SearchStrategy[bytes]:
    """Noise, broken pictures, pictures with some bytes changed, JSON of the right words and wrong values, forms cut off."""
    noise = st.binary(max_size=200)
    damaged = st.builds(lambda at, byte: good[:at] + byte + good[at + 1 :], st.integers(0, len(good)), st.binary(max_size=3))
    started = st.builds(bytes.__add__, st.sampled_from(STARTS), noise)
    pictures = noise | damaged | started
    listed = st.lists(st.builds(lambda data: base64.b64encode(data).decode(), pictures), max_size=3)
    record = st.builds(lambda options, images: json.dumps({"images": images, **options}).encode("utf-8", "surrogatepass"), OPTIONS, listed)
    form = st.builds(
        lambda name, data, end: PART % (name, data) + (b"--b--\r\n" if end else b""), st.binary(max_size=9), pictures, st.booleans()
    )
    return pictures | record | form


@pytest.mark.parametrize("part", range(2))
def test_malformed_requests(start: Callable[..., Any], picture: Callable[..., bytes], part: int) -> None:
    client, service = start(max_pixels=100_000)
    seen: set[int] = set()

    @settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=part == 0)
    @given(
        bodies(picture()),
        st.sampled_from(KINDS),
        st.dictionaries(st.sampled_from(["threshold", "classes", "masks", "x"]), st.text(max_size=6), max_size=2),
    )
    def ask(body: bytes, kind: str, query: dict[str, str]) -> None:
        answer = client.post("/v1/predict", content=body, headers={"content-type": kind.encode()}, params=query)
        seen.add(answer.status_code)
        assert answer.status_code in (200, 400, 413, 415, 422), answer.text
        assert answer.status_code == 200 or set(answer.json()) == {"error", "message"}
        assert "\n" not in answer.json().get("message", "")

    ask()
    assert {415, 422} <= seen
    assert (service.batcher.held, service.batcher.waiting) == (0, 0)
    assert client.post("/v1/predict", content=picture(), headers={"content-type": "image/png"}).status_code == 200
