"""Bytes of a picture from an address, bounded in size and time."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
import urllib.parse
import urllib.request
from typing import Any
from urllib.error import HTTPError, URLError

from rapidetr.core.errors import ImageError, ImageMissing
from rapidetr.pixels.read import ImageLimits, one_line


class Connections(urllib.request.HTTPSHandler, urllib.request.HTTPHandler):
    """Opens http and https, and keeps hold of the sockets, so that they can be shut when the time is up."""

    def __init__(self, deadline: float) -> None:
        super().__init__()
        self.deadline = deadline
        self.sockets: list[socket.socket] = []

    def do_open(self, http_class: Any, req: Any, **options: Any) -> Any:
        def connection(*args: Any, **kwargs: Any) -> http.client.HTTPConnection:
            made: Any = http_class(*args, **kwargs)
            connect = made.connect

            def connect_and_note() -> None:
                connect()
                self.sockets.append(made.sock)
                if time.monotonic() > self.deadline:
                    raise TimeoutError

            made.connect = connect_and_note
            return made

        return super().do_open(connection, req, **options)

    def shut(self) -> None:
        for opened in self.sockets:
            with contextlib.suppress(OSError):  # it is closed already
                opened.shutdown(socket.SHUT_RDWR)


def download(url: str, limits: ImageLimits) -> bytes:
    """The answer to a GET of at most `max_bytes` within `timeout_s`; redirects are followed to http and https only.

    It runs in a thread of its own: looking up a name cannot be interrupted, and a server that sends one byte now and then
    never exceeds the time-out of a single read.
    """
    handler = Connections(time.monotonic() + limits.timeout_s)
    outcome: list[bytes | Exception] = []

    def work() -> None:
        try:
            outcome.append(fetch(url, limits, handler))
        except Exception as problem:  # whatever it is belongs to the caller
            outcome.append(problem)

    worker = threading.Thread(target=work, name="download", daemon=True)
    worker.start()
    worker.join(limits.timeout_s)
    late = f"{url} did not deliver within {limits.timeout_s:g} s (ImageLimits.timeout_s); try again later, or download it yourself"
    if not outcome:
        handler.shut()
        raise ImageError(late)
    result = outcome[0]
    if isinstance(result, bytes):
        return result
    if isinstance(result, ImageError):
        raise result
    if isinstance(result, HTTPError):
        result.close()
        kind = ImageMissing if result.code in (404, 410) else ImageError
        raise kind(f"{url} was refused with {result.code} {one_line(result.reason)}; check the address")
    reason = result.reason if isinstance(result, URLError) else result
    if isinstance(reason, TimeoutError):
        raise ImageError(late)
    raise ImageError(f"{url} cannot be read: {one_line(reason)}; check the address and the network")


def fetch(url: str, limits: ImageLimits, handler: Connections) -> bytes:
    """The body that `url` answers with, read until it is complete, too long or too late."""
    opener = urllib.request.OpenerDirector()
    proxies = {scheme: proxy for scheme, proxy in urllib.request.getproxies().items() if scheme in ("http", "https")}
    for part in (
        urllib.request.ProxyHandler(proxies),
        handler,
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(part)
    request = urllib.request.Request(urllib.parse.quote(url, safe="%/:=&?~#+!$,;'@()*[]"), headers={"User-Agent": "rapidetr"})
    too_long = f"{url} sends more than ImageLimits.max_bytes={limits.max_bytes} bytes; raise the limit if you trust it"
    answer = opener.open(request, timeout=limits.timeout_s)
    with answer:
        promised = answer.headers.get("Content-Length", "")
        length = int(promised) if promised.isdecimal() else None
        if length is not None and length > limits.max_bytes:
            raise ImageError(too_long)
        data = bytearray()
        while chunk := answer.read1(2**16):
            data += chunk
            if len(data) > limits.max_bytes:
                raise ImageError(too_long)
            if time.monotonic() > handler.deadline:
                raise TimeoutError
    if length is not None and len(data) < length:
        raise ImageError(f"{url} broke off after {len(data)} of {length} bytes; try again")
    return bytes(data)
