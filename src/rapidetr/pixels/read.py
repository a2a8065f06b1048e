"""Bytes of a picture from a path or an address, bounded in size and time; and the pictures that arguments stand for."""

from __future__ import annotations

import contextlib
import glob
import http.client
import os
import re
import socket
import stat
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

from rapidetr.core.errors import ImageError, ImageMissing

SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".mpo",
    ".png",
    ".apng",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".pbm",
    ".avif",
)


@dataclass(frozen=True)
class ImageLimits:
    """What one picture may cost. Raise them for pictures that you trust."""

    max_pixels: int = 179_000_000  # width x height as the header says it, checked before decoding
    max_bytes: int = 256 * 2**20  # of a file or a download
    timeout_s: float = 20.0  # for a whole download, not for each read


@dataclass(frozen=True)
class Encoded:
    """The bytes of an image file; `source` is its path or address, where there is one."""

    data: bytes
    source: str | None = None

    @property
    def name(self) -> str:
        return self.source or "image bytes"


def read(source: Any, limits: ImageLimits = ImageLimits()) -> Any:
    """Encoded for a path, an http(s) address or bytes; anything else as it is, for `decode`. ImageError, ImageMissing."""
    if isinstance(source, bytes | bytearray | memoryview):
        return Encoded(bytes(source))
    if isinstance(source, str) and is_url(source):
        return Encoded(download(source, limits), source)
    if isinstance(source, str | os.PathLike):
        path = os.fsdecode(source)
        return Encoded(read_file(path, limits.max_bytes), path)
    return source


def one_line(problem: object) -> str:
    """What an exception of somebody else says, without line breaks; its type where it says nothing."""
    return " ".join(str(problem).split()) or type(problem).__name__


def is_url(text: str) -> bool:
    return re.match(r"https?://", text, re.IGNORECASE) is not None


def read_file(path: str, max_bytes: int) -> bytes:
    """All bytes of a regular file of at most `max_bytes`."""
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{path} is a folder; expected a picture; name a file in it")
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{path} is not a regular file; save the picture to one first")
        if status.st_size > max_bytes:
            raise ImageError(
                f"{path} has {status.st_size} bytes, more than ImageLimits.max_bytes={max_bytes}; raise the limit if you trust it"
            )
        return Path(path).read_bytes()
    except ImageError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise ImageMissing(f"{path} is not there; check the path") from None
    except (OSError, ValueError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) and problem.strerror else problem
        raise ImageError(f"{path!r} cannot be read: {reason}; check its name and permissions") from None


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


def find_images(arguments: Sequence[str]) -> list[str]:
    """Paths and addresses that arguments stand for, in their order and each once.

    A folder gives its pictures and then those of its subfolders, sorted, hidden ones left out; a pattern ('more/*.png',
    'all/**/*.jpg') the pictures that match; a file and an address stand for themselves. ImageMissing where there is none.
    """
    found: dict[str, str] = {}
    for argument in arguments:
        for image in [argument] if is_url(argument) else expand(argument):
            found.setdefault(image if is_url(image) else os.path.normcase(os.path.abspath(image)), image)
    return list(found.values())


def expand(argument: str) -> list[str]:
    """The pictures of one argument that is not an address."""
    if os.path.isdir(argument):
        images = list(walk(argument))
        if not images:
            raise ImageMissing(f"{argument} holds no pictures; expected files that end in one of {' '.join(SUFFIXES)}")
        return images
    if os.path.lexists(argument):  # also where its name looks like a pattern
        return [argument]
    if glob.has_magic(argument):
        images = sorted(f for f in glob.glob(argument, recursive=True) if f.lower().endswith(SUFFIXES) and os.path.isfile(f))
        if not images:
            raise ImageMissing(f"{argument} matches no pictures; expected files that end in one of {' '.join(SUFFIXES)}")
        return images
    raise ImageMissing(f"{argument or repr(argument)} is not there; check the path")


def walk(folder: str) -> Iterator[str]:
    """Pictures of a folder, sorted, then of its subfolders."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        yield from (os.path.join(place, f) for f in sorted(files) if f.lower().endswith(SUFFIXES) and not f.startswith("."))
