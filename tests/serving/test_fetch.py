"""Addresses that strangers name: private networks stay closed, whatever a name, a redirect or a slow server tries."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rapidetr.core.errors import ImageError
from rapidetr.serving import fetch
from rapidetr.serving.fetch import fetch_public, is_public


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255",
     "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:7f00:1::",
     "2002:a00:1::"],
)  # fmt: skip
def test_private_addresses(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses(address: str) -> None:
    assert is_public(address)


def get(url: str, addresses: list[str] | None = None, **limits: float) -> bytes:
    found = ["127.0.0.1"] if addresses is None else addresses
    return fetch_public(url, **{"max_bytes": 1000, "timeout_s": 5.0, **limits}, resolve=lambda host, port: found).data


@pytest.mark.parametrize("addresses", [["10.0.0.1"], ["8.8.8.8", "127.0.0.1"], []])
def test_a_name_that_leads_inside_is_not_followed(addresses: list[str]) -> None:
    with pytest.raises(ImageError, match=r"http://name/a\.jpg: is not on the open internet; .* send the picture itself"):
        get("http://name/a.jpg", addresses)


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "ftp://host/a", "http://", "http://u:p@host/", "http://host:99999/", "http://[::1", "no",
     "http://host/\r\nX: y", "http://hö.example/"],
)  # fmt: skip
def test_what_is_no_plain_address(url: str) -> None:
    with pytest.raises(ImageError, match="http\\(s\\)://host/path"):
        get(url, ["8.8.8.8"])


def test_numbers_in_disguise_are_resolved_first() -> None:
    """2130706433 and 0x7f.1 are 127.0.0.1 to many resolvers; what counts is where they lead."""
    for host in ("2130706433", "0x7f.1", "127.1", "localhost"):
        with pytest.raises(ImageError, match=r"open internet|not a known host"):
            fetch_public(f"http://{host}/", max_bytes=10, timeout_s=1.0)


class Told(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "http://169.254.169.254/")
            self.end_headers()
            return
        self.send_response(200)
        body = {"/picture?a=1": b"12345", "/long": b"x" * 1001, "/cut": b"12"}.get(self.path, b"")
        self.send_header("Content-Length", "5" if self.path == "/cut" else str(max(len(body), 1)))
        self.end_headers()
        self.wfile.write(body)
        if self.path == "/slow":
            self.wfile.flush()
            self.server.end.wait(20)  # type: ignore[attr-defined]

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server on this machine, which counts as public here."""
    monkeypatch.setattr(fetch, "is_public", lambda address: True)
    with ThreadingHTTPServer(("127.0.0.1", 0), Told) as server:
        server.end = threading.Event()  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://example.test:{server.server_port}"
        server.end.set()  # type: ignore[attr-defined]
        server.shutdown()
        thread.join()


def test_a_picture_comes_from_the_address_that_was_checked(address: str) -> None:
    assert get(f"{address}/picture?a=1") == b"12345"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/redirect", "answered 302; expected 200 \\(redirects are not followed\\)"),
        ("/long", "has more than 1000 bytes"),
        ("/cut", "did not deliver|broke off after 2 bytes"),
    ],
)
def test_what_does_not_come_whole(address: str, path: str, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        get(address + path)


def test_a_server_that_takes_its_time(address: str) -> None:
    with pytest.raises(ImageError, match=r"did not deliver within 0\.2 s|broke off"):
        get(f"{address}/slow", timeout_s=0.2)
