"""Requests that nobody meant to send, drawn from what the server's OpenAPI description says; benchmarks and tests share them.

Some are good ones, so that what lies behind the checks is reached as well.
"""

from __future__ import annotations

import base64
import json
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

PREDICT = "/v1/predict"
ODD: list[Any] = [
    None,
    False,
    -1,
    0,
    10**30,
    1e308,
    float("nan"),
    "",
    "x" * 300,
    "\u0000",
    "\ud800",
    [],
    {},
    [[]],
    {"a": 1},
    "../../etc/passwd",
]
STARTS = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"GIF89a",
    b"RIFF\x00\x00\x00\x00WEBPVP8 ",
    b"BM",
    b"II*\x00",
    b"P6\n9 9\n255\n",
    b"\x00\x00\x00\x1cftypavif",
)
TYPES = ("text/html", "", "é", "image/", "application/json; charset=utf-7", "multipart/form-data", "multipart/form-data; boundary=")
TARGETS = (
    "/v1/predict/",
    "//v1/predict",
    "/v1/predict%00",
    "/..%2f..%2fetc/passwd",
    "/v1/" + "a" * 3000,
    "/docs",
    "/%ff%fe",
    "/v1/predict?" + "&" * 999,
)


@dataclass(frozen=True)
class Request:
    """`wire`: the bytes to send where these are no whole HTTP request; a client that only speaks HTTP cannot send it."""

    kind: str
    method: str = "POST"
    target: str = PREDICT  # path and query, quoted
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    wire: bytes | None = None

    def encode(self) -> bytes:
        """All of it, for a connection of its own."""
        if self.wire is not None:
            return self.wire
        lines = [f"{self.method} {self.target} HTTP/1.1".encode(), b"Host: x", b"Connection: close", b"Content-Length: %d" % len(self.body)]
        return b"\r\n".join([*lines, *(b": ".join(header) for header in self.headers), b"", self.body])


@dataclass(frozen=True)
class Source:
    """What requests are drawn from: an OpenAPI description and the file of a good picture."""

    description: dict[str, Any]
    picture: bytes

    @property
    def operation(self) -> dict[str, Any]:
        return self.description["paths"][PREDICT]["post"]

    def fields(self) -> dict[str, dict[str, Any]]:
        """Schemas by name. A short deadline is a good one, and may be answered with 503 or 504: none is drawn."""
        asked: dict[str, Any] = self.operation["requestBody"]["content"]["application/json"]["schema"]["properties"]
        found = {name: dict(schema) for name, schema in asked.items() if name not in ("images", "urls")}
        found["deadline_ms"] = {"maximum": 3_600_000}
        return found | {"deadline": {"minimum": 1}}  # no such option

    def draw(self, draw: random.Random) -> Request:
        makers: list[tuple[int, Callable[[random.Random], Request]]] = [
            (1, self.good), (3, self.options), (3, self.record), (3, self.form), (3, self.broken_picture),
            (1, self.elsewhere), (1, self.headers), (2, self.wire),
        ]  # fmt: skip
        (maker,) = draw.choices([maker for _, maker in makers], [weight for weight, _ in makers])
        return maker(draw)

    def good(self, draw: random.Random) -> Request:
        """One of the three forms, with options that are allowed."""
        options = draw.choice(["", "?threshold=0.1", "?max_detections=3&masks=none", "?classes=0"])
        text = base64.b64encode(self.picture).decode()
        kinds = {
            b"image/jpeg": self.picture,
            b"application/json": json.dumps({"images": [text]}).encode(),
            form_type(): form([("f", "a.jpg", self.picture)]),
        }
        kind = draw.choice(list(kinds))
        return Request("good", target=PREDICT + options, headers=[(b"Content-Type", kind)], body=kinds[kind])

    def options(self, draw: random.Random) -> Request:
        """A good picture with options that are nearly right."""
        return Request("options", target=PREDICT + self.query(draw, 0.2), headers=[(b"Content-Type", b"image/jpeg")], body=self.picture)

    def query(self, draw: random.Random, part: float) -> str:
        words = [(name, value(schema, draw)) for name, schema in self.fields().items() if draw.random() < part]
        return "?" + "&".join(f"{name}={quote(str(given).encode('utf-8', 'surrogatepass'))}" for name, given in words)

    def record(self, draw: random.Random) -> Request:
        """JSON: wrong types, missing parts, nested without end, cut off, numbers that no type holds."""
        record: Any = {name: value(schema, draw) for name, schema in self.fields().items() if draw.random() < 0.3}
        piece = self.piece(draw)
        examples = [e["value"] for e in self.operation["requestBody"]["content"]["application/json"]["examples"].values()]
        pictures = [[base64.b64encode(piece).decode()], [piece.hex()], [1], None, "x", [], [""] * 40, *(e["images"] for e in examples)]
        record["images"] = draw.choice(pictures)
        if draw.random() < 0.2:
            record["urls"] = draw.choice([["http://127.0.0.1:1/"], "http://x", [7], ["file:///etc/passwd"]])
        if draw.random() < 0.2:
            del record["images"]
        text = json.dumps(draw.choice([record, record, record, [record], nested(record, draw)])).encode()
        odd = [
            b"[" * 50_000,
            b'{"images":' + b"9" * 5000 + b"}",
            b"1e999",
            b"\xff\xfe{}",
            b'{"threshold":0.1,"threshold":[]}',
            text[: draw.randrange(len(text))],
        ]
        return Request("json", headers=[(b"Content-Type", b"application/json")], body=draw.choice([text, text, text, draw.choice(odd)]))

    def form(self, draw: random.Random) -> Request:
        """Forms with odd names, too many parts, other boundaries, cut off."""
        names = list(self.fields())
        parts = [
            (draw.choice([*names, "f", "", 'a"b', "é"]), draw.choice([None, "a.jpg", "../a", "", "x" * 500]), self.piece(draw))
            for _ in range(draw.choice([0, 1, 2, 2, 20]))
        ]
        parts += [
            (name, None, str(value(schema, draw)).encode("utf-8", "replace"))
            for name, schema in self.fields().items()
            if draw.random() < 0.3
        ]
        body = form(parts) if draw.random() < 0.95 else form([("f", None, b"")] * 3000)
        whole = [
            body,
            body,
            body[: draw.randrange(len(body))],
            body.replace(b"Content-Disposition", b"X", 1),
            body.replace(b"\r\n\r\n", b"\r\n", 1),
        ]
        kind = draw.choice([form_type(), form_type(), form_type(), b"multipart/form-data; boundary=other", b"multipart/form-data"])
        return Request("form", target=PREDICT + self.query(draw, 0.1), headers=[(b"Content-Type", kind)], body=draw.choice(whole))

    def broken_picture(self, draw: random.Random) -> Request:
        """Pictures that are none, with content types that are right or not."""
        kinds = [kind.replace("*", "jpeg") for kind in self.operation["requestBody"]["content"]]
        kind = draw.choice([*4 * ["image/jpeg", "application/octet-stream"], *kinds, *TYPES])
        return Request("picture", headers=[(b"Content-Type", kind.encode())], body=self.piece(draw))

    def piece(self, draw: random.Random) -> bytes:
        """A picture cut off, changed in places, or only begun; noise; nothing; one whose header promises more than memory holds."""
        cut, noise = draw.randrange(len(self.picture)), draw.randbytes(draw.randint(1, 300))
        changed = bytearray(self.picture)
        for _ in range(draw.randint(1, 20)):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        pieces = [
            b"",
            noise,
            self.picture[:cut],
            bytes(changed),
            bytes(changed),
            draw.choice(STARTS) + noise,
            png_of(draw.choice([0, 1, 60_000, 2**31 - 1])),
        ]
        return draw.choice(pieces)

    def elsewhere(self, draw: random.Random) -> Request:
        """Other paths and other methods."""
        known = draw.choice([*self.description["paths"], *TARGETS])
        method = draw.choice(["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "POST", "TRACE", "PROPFIND", "post"])
        return Request("elsewhere", method, known, body=draw.choice([b"", self.piece(draw)]))

    def headers(self, draw: random.Random) -> Request:
        """A good picture under headers that are many, large, double or odd."""
        odd = [
            [(b"X-%d" % i, b"v" * 50) for i in range(300)],
            [(b"Cookie", b"c" * 30_000)],
            [(b"Content-Type", b"image/png"), (b"Content-Type", b"application/json")],
            [(b"Content-Type", b"\xff\xfe\x80")],
            [(b"Authorization", b"Bearer \xff" * 9), (b"X-API-Key", b"")],
            [(b"Content-Encoding", b"gzip"), (b"Accept", b"nothing/at-all")],
            [(b"X-Forwarded-For", b"::1, not an address"), (b"Forwarded", b"for=x")],
            [(b"Range", b"bytes=-1"), (b"If-None-Match", b"*")],
        ]
        return Request("headers", headers=[(b"Content-Type", b"image/jpeg"), *draw.choice(odd)], body=self.picture)

    def wire(self, draw: random.Random) -> Request:
        """Bytes that are no whole HTTP request, or one whose sender does not stay for the answer: other lengths than said, noise."""
        head = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: image/jpeg\r\n"
        size, cut = len(self.picture), draw.randrange(len(self.picture))
        sized = b"Content-Length: %d\r\n\r\n"
        chunked = head + b"Transfer-Encoding: chunked\r\n"
        wires = [
            head + sized % size + self.picture[:cut], head + sized % cut + self.picture, head + b"Content-Length: -1\r\n\r\n",
            head + b"Content-Length: 1e3\r\n\r\n", head + b"Content-Length: 10\r\n" + sized % 11 + b"0123456789",
            head + sized % 10**15, head + sized % int("9" * 40) + b"x", head + b"Expect: 100-continue\r\n" + sized % size,
            chunked + b"\r\n5\r\nabc", chunked + b"\r\nzz\r\nabc\r\n", chunked + sized % 4 + b"0\r\n\r\n",
            chunked + b"\r\n" + b"%x\r\n" % size + self.picture + b"\r\n0\r\n\r\n", head[: cut % len(head)],
            head + b"X: " + b"x" * 200_000 + b"\r\n\r\n", head + b"No colon\r\n\r\n", head + b"X: a\x00b\r\n\r\n",
            b"POST /v1/predict\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", draw.randbytes(500),
            b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n", b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        ]  # fmt: skip
        return Request("wire", wire=draw.choice(wires))


def value(schema: dict[str, Any], draw: random.Random) -> Any:
    """Something that a schema allows, almost allows, or does not know at all."""
    kind = draw.choice(schema.get("anyOf", [schema]))
    usual: list[Any] = list(kind.get("enum", []))
    for bound in ("minimum", "maximum"):
        if bound in kind:
            usual += [kind[bound], kind[bound] - 1, kind[bound] + 1]
    if kind.get("type") == "array":
        usual.append([value(draw.choice(kind["items"].get("anyOf", [kind["items"]])), draw) for _ in range(draw.randint(0, 3))])
    return draw.choice(ODD + 3 * usual)


def nested(record: Any, draw: random.Random) -> Any:
    for _ in range(draw.choice([2, 50, 400])):
        record = draw.choice([[record], {"images": record}])
    return record


def form_type() -> bytes:
    return b"multipart/form-data; boundary=b"


def form(parts: list[tuple[str, str | None, bytes]]) -> bytes:
    """multipart/form-data of (name, file name, data)."""
    made = b""
    for name, file, data in parts:
        more = b"" if file is None else b'; filename="%s"' % file.encode()
        made += b'--b\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n' % (name.encode(), more, data)
    return made + b"--b--\r\n"


def png_of(side: int) -> bytes:
    """A PNG whose header promises side x side pixels, and whose data are four bytes."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"abcd")), (b"IEND", b""))
    made = (struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)
