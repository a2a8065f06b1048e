"""Every endpoint and every refusal, over HTTP, with an engine that the test commands."""

from __future__ import annotations

import base64
import io
import json
import logging
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import anyio
import httpx
import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Mount

import rapidetr
from rapidetr.core.clock import STAGES
from rapidetr.core.errors import ImageError
from rapidetr.pixels.decode import Encoded, ImageLimits
from rapidetr.serving.guard import Guard
from rapidetr.serving.limits import ServeLimits
from rapidetr.serving.metrics import Metrics
from rapidetr.serving.schema import Answer, Card
from rapidetr.serving.served import Wanted, serve_detector

JPEG = {"content-type": "image/jpeg"}
Picture = Callable[..., bytes]


def post(client: Any, content: bytes, **options: Any) -> Any:
    return client.post("/v1/predict", content=content, headers=JPEG, params=options)


def scores(answer: Any) -> list[dict[str, float]]:
    return [{d["class_name"]: d["score"] for d in image["detections"]} for image in answer.json()["images"]]


def test_raw_bytes(start, picture: Picture) -> None:
    client, service = start()
    answer = post(client, picture(51, (20, 30)), threshold=0.1)
    assert answer.status_code == 200
    record = Answer.model_validate(answer.json())
    assert record.model == service.model.id == "told-32x32-told-float32"
    (image,) = record.images
    assert image.size_hw == (20, 30)
    assert [(d.class_name, d.box_xyxy_px) for d in image.detections] == [("cat", (0, 0, 15, 20)), ("dog", (0, 0, 30, 20))]
    assert image.detections[1].score == pytest.approx(0.2, abs=1e-5)  # 51 / 255
    assert set(image.times_ms) == {"decode", "prepare", "wait", "select"}
    assert record.times_ms["total"] >= record.times_ms["read"] >= 0


def test_three_forms_say_the_same(start, picture: Picture) -> None:
    client, _ = start()
    one, two = picture(51), picture(204, format="JPEG")
    form = client.post("/v1/predict", files=[("a", ("one.png", one)), ("b", ("two.jpg", two))], data={"threshold": "0.1"})
    record = {"images": [base64.b64encode(data).decode() for data in (one, two)], "threshold": 0.1}
    plain = client.post("/v1/predict", json=record)
    assert [image["source"] for image in form.json()["images"]] == ["one.png", "two.jpg"]
    assert [image["source"] for image in plain.json()["images"]] == ["images[0]", "images[1]"]
    raw = [scores(post(client, data, threshold=0.1))[0] for data in (one, two)]
    assert scores(form) == scores(plain) == raw
    assert raw[1]["dog"] == pytest.approx(0.8, abs=0.01)  # JPEG rounds


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ({}, ["cat"]),
        ({"threshold": 0}, ["cat", "dog"]),
        ({"threshold": 0.1, "classes": "dog"}, ["dog"]),
        ({"threshold": 0.1, "classes": ["dog", "0"]}, ["cat", "dog"]),
        ({"threshold": 0.1, "classes": "7"}, []),  # a name, although it looks like an index
        ({"threshold": 0.1, "max_detections": 1}, ["cat"]),
    ],
)
def test_options(start, picture: Picture, query: dict[str, Any], names: list[str]) -> None:
    client, _ = start()
    data = picture(51)
    classes = query.get("classes")
    listed = {"classes": [classes] if isinstance(classes, str) else classes} if classes else {}
    record = {**query, **listed, "images": [base64.b64encode(data).decode()]}
    for answer in (
        post(client, data, **query),
        client.post("/v1/predict", files={"f": data}, data=query),
        client.post("/v1/predict", json=record),
    ):
        assert [d["class_name"] for d in answer.json()["images"][0]["detections"]] == names, answer.text


@pytest.mark.parametrize(("masks", "kind"), [("rle", dict), ("polygons", list), ("none", type(None))])
def test_masks(start, engine, make_served, picture: Picture, masks: str, kind: type) -> None:
    engine.masks = True
    client, _ = start(model=make_served(engine))
    image = post(client, picture(0), masks=masks).json()["images"][0]
    (cat,) = image["detections"]
    assert isinstance(cat["mask"], kind)
    assert ("masks" in image["times_ms"]) is (masks != "none")
    if masks == "polygons":
        assert sorted(zip(cat["mask"][0][::2], cat["mask"][0][1::2], strict=True)) == [(0, 0), (0, 20), (15, 0), (15, 20)]


def png_of(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG")
    return out.getvalue()


@pytest.mark.slow  # loads torch
def test_the_server_answers_what_predict_answers() -> None:
    """The same numbers as `Detector.predict`, alone and in a batch with another picture, for every option at once."""
    detector = rapidetr.load("seg-pico", device="cpu")
    rng = np.random.default_rng(3)
    arrays = [rng.integers(0, 256, size, dtype=np.uint8).repeat(20, 0).repeat(20, 1) for size in ((8, 12, 3), (15, 9, 3))]
    wanted = Wanted(threshold=0.02, classes=(0, 1, 2, 3), max_detections=30)
    expected = [
        detector.predict(array, 0.02, classes=[0, 1, 2, 3], max_detections=30)[0].to_dict(masks="rle") for array in arrays
    ]  # fmt: skip
    assert sum(len(e["detections"]) for e in expected) > 3
    served = serve_detector(detector)
    encoded = [Encoded(png_of(array)) for array in arrays]
    prepared = [served.prepare(one, ImageLimits()) for one in encoded]
    for together in (False, True):
        outputs = served.run(prepared) if together else [served.run([one])[0] for one in prepared]
        for one, output, reference in zip(prepared, outputs, expected, strict=True):
            found = served.select(one, output, wanted, 0.0).to_dict(masks="rle")
            if together:  # sums are in another order
                assert [d["class_name"] for d in found["detections"]] == [d["class_name"] for d in reference["detections"]]
                for d, r in zip(found["detections"], reference["detections"], strict=True):
                    assert d["box_xyxy_px"] == pytest.approx(r["box_xyxy_px"], abs=0.05)
            else:
                assert found["detections"] == reference["detections"]
                assert set(found["times_ms"]) >= {"decode", "prepare", "wait", "transfer", "run", "select", "masks"}


MALFORMED = [
    ({"content": b"x", "headers": {"content-type": "text/plain"}}, 415, "UnsupportedMediaType", "'text/plain'; expected multipart"),
    ({"content": b"x"}, 415, "UnsupportedMediaType", "content type is ''"),
    ({"content": b"nothing", "headers": JPEG}, 422, "ImageError", "image bytes is not a picture of a known format"),
    ({"content": b"", "headers": JPEG}, 422, "ImageError", "image bytes is empty (0 bytes)"),
    ({"files": {"f": ("a.jpg", b"\xff\xd8\xff\xe0cut")}}, 422, "ImageError", "a.jpg is damaged or cut off"),
    ({"data": {"threshold": "0.5"}, "files": {}}, 415, "UnsupportedMediaType", "application/x-www-form-urlencoded"),
    ({"json": {}}, 422, "InvalidRequest", "no picture came; expected at least one"),
    ({"json": []}, 422, "InvalidRequest", "body is a JSON list; expected an object with images"),
    ({"content": b"{", "headers": {"content-type": "application/json"}}, 422, "InvalidRequest", "body is not JSON"),
    ({"content": b"[" * 100_000, "headers": {"content-type": "application/json"}}, 422, "InvalidRequest", "body is not JSON"),
    ({"json": {"images": ["a"]}}, 422, "InvalidRequest", "images[0] is not base64"),
    ({"json": {"images": [3]}}, 422, "InvalidRequest", "images.0: Input should be a valid string, got 3"),
    ({"json": {"images": ["AA=="], "treshold": 1}}, 422, "InvalidRequest", "treshold: Extra inputs are not permitted, got 1"),
    ({"content": b"x", "headers": JPEG, "params": {"threshold": "nan"}}, 422, "InvalidRequest", "threshold: "),
    ({"content": b"x", "headers": JPEG, "params": {"masks": "all"}}, 422, "InvalidRequest", "'rle' or 'polygons', got 'all'"),
    ({"content": b"x", "headers": JPEG, "params": {"max_detections": "0"}}, 422, "InvalidRequest", "max_detections: Input should be"),
    ({"content": b"x", "headers": JPEG, "params": {"classes": "bird"}}, 422, "ConfigError", "this model knows: cat, dog, 7"),
    ({"content": b"x", "headers": JPEG, "params": {"classes": "9"}}, 422, "ConfigError", "unknown class 9"),
    ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "BadRequest", "the form has no boundary"),
    ({"content": b"--b\r\n", "headers": {"content-type": "multipart/form-data; boundary=b"}}, 400, "BadRequest", "the form is cut off"),
    ({"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=b"}}, 400, "BadRequest", "the form cannot be read"),
    ({"json": {"urls": ["http://example.org/a.jpg"]}}, 422, "InvalidRequest", "this server takes no addresses"),
    ({"json": {"images": ["AA=="] * 17}}, 413, "TooLarge", "17 pictures came; expected at most 16"),
    ({"files": [("f", b"x")] * 17}, 413, "TooLarge", "17 pictures came; expected at most 16"),
]  # fmt: skip


@pytest.mark.parametrize(("request_", "status", "kind", "message"), MALFORMED)
def test_refusals(start, request_: dict[str, Any], status: int, kind: str, message: str) -> None:
    client, _ = start()
    answer = client.post("/v1/predict", **request_)
    assert (answer.status_code, answer.json()["error"]) == (status, kind), answer.text
    assert message in answer.json()["message"]
    assert set(answer.json()) == {"error", "message"}


def test_pixels_are_bounded_by_the_header(start, picture: Picture) -> None:
    client, _ = start(max_pixels=1000)
    assert post(client, picture(0, (25, 40))).status_code == 200
    answer = post(client, picture(0, (25, 41)))
    assert (answer.status_code, answer.json()["error"]) == (422, "ImageError")
    assert "25x41, more than ImageLimits.max_pixels=1000" in answer.json()["message"]


async def pieces(content: bytes) -> AsyncIterator[bytes]:
    for begin in range(0, len(content), 1000):
        yield content[begin : begin + 1000]


@pytest.mark.parametrize("declared", [True, False])
def test_bodies_are_bounded(start, picture: Picture, declared: bool) -> None:
    client, _ = start(max_body_bytes=5000)
    content = b"x" * 5001
    answer = post(client, content if declared else pieces(content))  # a stream has no Content-Length
    assert (answer.status_code, answer.json()) == (
        413,
        {"error": "TooLarge", "message": "the body has more than 5000 bytes; send fewer or smaller pictures"},
    )
    assert answer.headers["connection"] == "close"
    assert post(client, picture()).status_code == 200


def test_bodies_of_all_requests_together_are_bounded(start) -> None:
    client, _ = start(max_body_bytes=5000, max_held_bytes=3000)
    answer = post(client, b"x" * 3001)
    assert (answer.status_code, answer.json()["error"], answer.headers["retry-after"]) == (503, "Overloaded", "1")
    assert post(client, b"x" * 2999).status_code == 422


def test_other_paths_and_methods(start) -> None:
    client, _ = start()
    assert client.get("/v2").json() == {"error": "NotFound", "message": "GET /v2 is not there; see /openapi.json"}
    assert client.get("/v2").status_code == 404
    answer = client.get("/v1/predict")
    assert (answer.status_code, answer.headers["allow"], answer.json()["error"]) == (405, "POST", "MethodNotAllowed")


def test_the_model_card(start) -> None:
    client, _ = start()
    card = Card.model_validate(client.get("/v1/model").json())
    assert (card.id, card.size_hw, card.engine, card.precision, card.license) == (
        "told-32x32-told-float32",
        (32, 32),
        "told",
        "float32",
        "Apache-2.0",
    )
    assert [(label.class_id, label.name, label.dataset_id) for label in card.labels] == [(0, "cat", 0), (1, "dog", 1), (2, "7", 2)]
    assert (card.artifact, card.verdict) == (None, None)


KEYS = (b"first-key-of-a-test", b"other-key-of-a-test")


def test_api_keys(start, picture: Picture) -> None:
    client, _ = start(keys=KEYS)
    for path in ("/", "/healthz", "/readyz", "/openapi.json"):
        assert client.get(path).status_code == 200, path
    for headers in (
        {},
        {"x-api-key": "first-key-of-a-tes"},
        {"authorization": "Basic first-key-of-a-test"},
        {"authorization": "Bearer "},
        {"x-api-key": "é".encode()},
    ):
        for answer in (
            client.get("/v1/model", headers=headers),
            client.get("/metrics", headers=headers),
            client.post("/v1/predict", content=picture(), headers={**JPEG, **headers}),
        ):
            assert (answer.status_code, answer.json()["error"], answer.headers["www-authenticate"]) == (401, "Unauthorized", "Bearer")
    for headers in ({"x-api-key": "first-key-of-a-test"}, {"authorization": "Bearer other-key-of-a-test"}):
        assert client.get("/metrics", headers=headers).status_code == 200
        assert client.post("/v1/predict", content=picture(), headers={**JPEG, **headers}).status_code == 200


def test_shedding(start, engine, picture: Picture) -> None:
    client, service = start(max_queue=3, max_images=2, max_batch=1)
    engine.open.clear()
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(post, client, picture())
        engine.entered.acquire(timeout=20)
        two = pool.submit(client.post, "/v1/predict", files=[("f", picture()), ("g", picture())])
        wait_for(lambda: service.batcher.held == 3)
        answer = post(client, picture())
        assert (answer.status_code, answer.json()["error"], answer.headers["retry-after"]) == (503, "Overloaded", "1")
        assert answer.json()["message"] == "3 of 3 places are taken, 1 more were asked for; try again in 1 s"
        assert client.get("/readyz").status_code == 200
        engine.open.set()
        assert (first.result(20).status_code, two.result(20).status_code) == (200, 200)
    assert service.batcher.held == 0
    assert post(client, picture()).status_code == 200
    assert sample(client, "rapidetr_shed_total") == 1


def wait_for(happened: Callable[[], bool]) -> None:
    """Another thread needs a moment; a test that needs more than 20 s fails."""
    import time

    until = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.002)


def test_requests_that_wait_run_together_and_are_not_mixed_up(start, engine, picture: Picture) -> None:
    client, service = start(max_batch=4)
    for size in (1, 2, 4):
        service.model.costs.learn(size, 0.010)  # batches cost nothing
    engine.open.clear()
    grays = [26, 51, 77, 102, 128, 153]
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(post, client, picture(grays[0]), threshold=0.05)]
        engine.entered.acquire(timeout=20)
        asked += [pool.submit(post, client, picture(gray), threshold=0.05) for gray in grays[1:]]
        wait_for(lambda: service.batcher.waiting == 5)
        engine.open.set()
        found = [scores(answer.result(20))[0]["dog"] for answer in asked]
    assert found == pytest.approx([gray / 255 for gray in grays], abs=1e-5)
    assert engine.sizes == [1, 4, 1]


class Clock:
    def __init__(self) -> None:
        self.time = 50.0

    def __call__(self) -> float:
        return self.time


def test_deadlines(start, engine, picture: Picture) -> None:
    clock = Clock()
    client, service = start(now=clock, deadline_ms=2000, max_batch=1)
    engine.open.clear()
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(post, client, picture())
        engine.entered.acquire(timeout=20)
        short, long = pool.submit(post, client, picture(), deadline_ms=500), pool.submit(post, client, picture(), deadline_ms=60_000)
        wait_for(lambda: service.batcher.waiting == 2)
        clock.time += 1.0
        engine.open.set()
        answer = short.result(20)
        assert (answer.status_code, answer.json()) == (
            504,
            {"error": "DeadlinePassed", "message": "its deadline passed after 1.000 s in the queue"},
        )
        assert (first.result(20).status_code, long.result(20).status_code) == (200, 200)
        engine.open.clear()
        first = pool.submit(post, client, picture())
        wait_for(lambda: len(engine.sizes) == 3)
        late = pool.submit(post, client, picture(), deadline_ms=60_000)  # the server's own deadline is shorter
        wait_for(lambda: service.batcher.waiting == 1)
        clock.time += 2.0
        engine.open.set()
        assert (first.result(20).status_code, late.result(20).status_code) == (200, 504)
    assert engine.sizes == [1, 1, 1]


def test_an_engine_that_fails(start, engine, picture: Picture, caplog: pytest.LogCaptureFixture) -> None:
    client, service = start()
    engine.problem = RuntimeError("device lost")
    with caplog.at_level(logging.ERROR):
        answer = post(client, picture())
    assert (answer.status_code, answer.json()) == (
        500,
        {"error": "InternalError", "message": "something went wrong in the server; its log says what"},
    )
    assert "device lost" in caplog.text
    engine.problem = None
    assert post(client, picture()).status_code == 200
    assert service.batcher.held == 0


def test_a_bad_picture_among_good_ones_is_named(start, picture: Picture) -> None:
    client, service = start()
    answer = client.post("/v1/predict", files=[("f", ("good.png", picture())), ("g", ("bad.png", b"no"))])
    assert (answer.status_code, answer.json()["error"]) == (422, "ImageError")
    assert answer.json()["message"].startswith("bad.png is not a picture of a known format")
    assert service.batcher.held == 0


def test_draining(start, picture: Picture) -> None:
    client, service = start()
    assert client.get("/readyz").json() == {"ready": True, "draining": False, "model": service.model.id, "reload": {}}
    service.draining = True
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["ready"]) == (503, False)
    assert (client.get("/healthz").status_code, post(client, picture()).status_code) == (200, 200)
    service.close()
    assert (client.get("/healthz").status_code, post(client, picture()).json()["error"]) == (503, "Draining")


def test_addresses(start, picture: Picture) -> None:
    asked = []

    def fetch(url: str, *, max_bytes: int, timeout_s: float) -> Encoded:
        asked.append((url, max_bytes, timeout_s))
        if "bad" in url:
            raise ImageError(f"{url}: is not on the open internet")
        return Encoded(picture(51), url)

    client, _ = start(fetch=fetch, max_body_bytes=9999, url_timeout_s=3.0)
    answer = client.post(
        "/v1/predict", json={"urls": ["http://a/1.png"], "images": [base64.b64encode(picture(204)).decode()], "threshold": 0.1}
    )
    assert [image["source"] for image in answer.json()["images"]] == ["images[0]", "http://a/1.png"]
    assert scores(answer)[1]["dog"] == pytest.approx(0.2, abs=1e-5)
    assert asked == [("http://a/1.png", 9999, 3.0)]
    assert client.post("/v1/predict", json={"urls": ["http://bad/"]}).json()["error"] == "ImageError"


def sample(client: Any, name: str, **labels: str) -> float:
    families = text_string_to_metric_families(client.get("/metrics").text)
    (value,) = [s.value for family in families for s in family.samples if s.name == name and labels.items() <= s.labels.items()]
    return value


def test_metrics(start, picture: Picture) -> None:
    client, service = start()
    assert client.post("/v1/predict", files=[("f", picture()), ("g", picture())]).status_code == 200
    assert post(client, b"no").status_code == 422
    assert client.get("/odd/path").status_code == 404
    kept = {"path": "/v1/predict", "method": "POST"}
    assert sample(client, "rapidetr_requests_total", status="200", **kept) == 1
    assert sample(client, "rapidetr_requests_total", status="422", **kept) == 1
    assert sample(client, "rapidetr_requests_total", status="404", path="other") == 1
    assert sample(client, "rapidetr_pictures_total") == 2
    assert sample(client, "rapidetr_request_seconds_count") == 1
    assert sample(client, "rapidetr_batch_size_sum") == 2
    assert sample(client, "rapidetr_queue_depth") == sample(client, "rapidetr_pictures_held") == 0
    assert sample(client, "rapidetr_ready") == 1
    assert sample(client, "rapidetr_model", model=service.model.id) == 1
    for stage in ("wait", *STAGES):
        assert sample(client, "rapidetr_stage_seconds_count", stage=stage) == (2 if stage in ("wait", "decode", "prepare", "select") else 0)
    middle, slow = (sample(client, "rapidetr_request_window_seconds", percentile=p) for p in ("p50", "p99"))
    assert 0 < middle <= slow


def test_percentiles_are_of_the_last_minute() -> None:
    clock = Clock()
    window = Metrics(now=clock).window
    assert window.percentiles() == {}
    for value in range(101):
        window.add(float(value))
    assert window.percentiles() == {50: 50.0, 95: 95.0, 99: 99.0}
    clock.time += 30
    window.add(1000.0)
    clock.time += 31
    assert window.percentiles() == {50: 1000.0, 95: 1000.0, 99: 1000.0}


def test_openapi_tells_what_the_server_does(start) -> None:
    client, _ = start()
    record = client.get("/openapi.json").json()
    assert set(record["paths"]) == {"/v1/predict", "/v1/model", "/healthz", "/readyz", "/metrics"}
    predict = record["paths"]["/v1/predict"]["post"]
    assert set(predict["responses"]) == {"200", "400", "401", "408", "413", "415", "422", "503", "504"}
    assert [p["name"] for p in predict["parameters"]] == ["threshold", "classes", "max_detections", "masks", "deadline_ms"]
    Answer.model_validate(predict["responses"]["200"]["content"]["application/json"]["example"])
    examples = predict["requestBody"]["content"]["application/json"]["examples"]
    for example in examples.values():
        assert client.post("/v1/predict", json=example["value"]).status_code == 200
    assert json.dumps(record).count('"$ref": "#/$defs') == 0


def test_the_page_needs_nothing_but_itself(start) -> None:
    client, _ = start()
    answer = client.get("/")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    for outside in ("http://", "https://", "//cdn", "@import", "url(", 'style="', "onclick="):
        assert outside not in answer.text, outside
    for header, value in {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "cache-control": "no-store"}.items():
        assert answer.headers[header] == value


async def slow(scope: dict[str, Any], receive: Any, send: Any) -> None:
    while (await receive()).get("more_body"):
        pass
    raise AssertionError("the body never ends")


@pytest.mark.parametrize("timeout_s", [0.05])
def test_slow_bodies(timeout_s: float) -> None:
    """One byte now and then does not keep a request alive: the time is for the whole body."""
    guard, sent, parts = Guard(slow, ServeLimits(body_timeout_s=timeout_s), Metrics()), [], []

    async def receive() -> dict[str, Any]:
        parts.append(1)
        await anyio.sleep(timeout_s / 5)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/predict", "headers": []}
    with anyio.from_thread.start_blocking_portal() as portal:
        portal.call(guard, scope, receive, send)
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]
    assert (
        json.loads(sent[1]["body"])["message"] == "the body did not arrive within 0.05 s; send a smaller picture, or raise --body-timeout"
    )
    assert len(parts) >= 2
    assert guard.held_bytes == 0


async def read_all(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await Request(scope, receive).body()


def test_who_leaves_is_no_failure_of_the_server(caplog: pytest.LogCaptureFixture) -> None:
    """Hung up in the middle of a body: nothing is sent, nothing is logged, no 5xx is counted, and its bytes are given back."""
    metrics = Metrics()
    guard, sent = Guard(read_all, ServeLimits(), metrics), list[Any]()
    messages = iter([{"type": "http.request", "body": b"some", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> dict[str, Any]:
        return next(messages)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/predict", "headers": []}
    with anyio.from_thread.start_blocking_portal() as portal:
        portal.call(guard, scope, receive, send)
    assert (sent, caplog.records, guard.held_bytes) == ([], [], 0)
    assert 'rapidetr_requests_total{method="POST",path="/v1/predict",status="499"} 1.0' in metrics.text().decode()


def test_addresses_that_take_their_time_hold_up_nobody_else(start, picture: Picture) -> None:
    """Downloads have threads of their own, and finding an address, which has no limit of its own, ends with that of addresses."""
    hold, asked = threading.Event(), threading.Semaphore(0)

    def fetch(url: str, *, max_bytes: int, timeout_s: float) -> Encoded:
        asked.release()
        assert hold.wait(20)
        return Encoded(picture(51), url)

    client, _ = start(fetch=fetch, url_timeout_s=0.05, max_images=16)
    answer = client.post("/v1/predict", json={"urls": [f"http://a/{i}.png" for i in range(16)]})
    assert (answer.status_code, answer.json()["error"]) == (422, "ImageError")
    assert answer.json()["message"].endswith(" did not deliver within 0.05 s; send the picture itself")
    assert asked.acquire(timeout=20)
    assert client.post("/v1/predict", files={"image": picture(51)}).status_code == 200  # while eight of them still wait
    hold.set()


def test_too_many_pictures_are_refused_before_they_are_looked_at(start, monkeypatch: pytest.MonkeyPatch) -> None:
    from rapidetr.serving import body

    client, _ = start(max_images=4)
    monkeypatch.setattr(body.JsonRequest, "model_validate", lambda *a: pytest.fail("looked at"))
    for record in ({"images": [""] * 5}, {"urls": ["x"] * 5}, {"images": [""] * 3, "urls": ["x"] * 2}):
        answer = client.post("/v1/predict", json=record)
        assert (answer.status_code, answer.json()["message"]) == (413, "5 pictures came; expected at most 4, send several requests")


@pytest.mark.parametrize("prefix", ["", "/detect", "/detect/deep"])
def test_keys_are_asked_for_under_any_prefix(start, prefix: str) -> None:
    client, _ = start(keys=[b"secret"])
    outer = Starlette(routes=[Mount(prefix, app=client.app)]) if prefix else client.app
    proxied = httpx.ASGITransport(client.app, root_path=prefix)  # as `uvicorn --root-path` does it
    for transport in (httpx.ASGITransport(outer), proxied):
        http = httpx.AsyncClient(transport=transport, base_url="http://test")
        for path, status in {"/v1/model": 401, "/metrics": 401, "/healthz": 200}.items():
            assert client.portal.call(http.get, prefix + path).status_code == status, path
        assert client.portal.call(partial(http.get, prefix + "/v1/model", headers={"X-API-Key": "secret"})).status_code == 200
