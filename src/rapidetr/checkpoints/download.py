"""Published weights on this computer: found in a cache, or downloaded once, resumed where cut, and verified."""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError, URLError

from filelock import FileLock
from tqdm import tqdm

from rapidetr import __version__
from rapidetr.checkpoints.weights import PREFIX, WeightsEntry
from rapidetr.core.errors import ConfigError, DownloadError, HashMismatch, LicenseRefused

Progress = Callable[[int, int | None], object]  # bytes so far, bytes in all (None when the server does not say)

_CHUNK_BYTES = 1 << 20
_MAX_BYTES = 4 << 30  # the largest published file has about 0.5 GB
_ATTEMPTS = 5
_TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)
_SLOWEST_BYTES_PER_S = 1024  # over one timeout; less counts as no answer


def cache_folder() -> Path:
    """Where weights are kept: $RAPIDETR_HOME/weights, else rapidetr/weights in the user's cache folder."""
    if home := os.environ.get("RAPIDETR_HOME"):
        return Path(home).expanduser() / "weights"
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if os.path.isabs(cache) else Path.home() / ".cache") / "rapidetr" / "weights"


def official_cache_folders() -> list[Path]:
    """Where the official package keeps its weights; only read, never written to."""
    homes = [os.environ[name] for name in ("RF_HOME", "ROBOFLOW_HOME") if os.environ.get(name)]
    return [Path(home).expanduser() for home in [*homes, "~/.roboflow/models"]]


def fetch(
    entry: WeightsEntry,
    *,
    progress: Progress | bool = True,
    timeout_s: float = 30.0,
    sleep: Callable[[float], object] = time.sleep,
    now: Callable[[], float] = time.monotonic,
) -> Path:
    """Path of the verified file, downloaded if it is in no cache.

    `progress` is True for a bar on a terminal's stderr, False for silence, or is called with the bytes so far and in all.
    `timeout_s` bounds connecting and every wait for bytes. Raises DownloadError, HashMismatch, and LicenseRefused for
    weights that are never downloaded.
    """
    if entry.url is None:
        raise LicenseRefused(f"{entry.filename} is under {entry.license} and is never downloaded; give the path of your own copy")
    target = cache_folder() / entry.filename
    if found := _find(entry, target):
        return found
    job = _Job(entry, _address(entry), target, timeout_s, sleep, now)
    if os.environ.get("RAPIDETR_OFFLINE", "0") not in ("", "0"):
        raise job.failed("RAPIDETR_OFFLINE is set")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            found = _find(entry, target)  # another process may have finished while this one waited
            if found:
                return found
            with _shown(progress, entry.filename) as report:
                return job.run(report)
    except DownloadError:
        raise
    except OSError as problem:  # no room, no right to write, a folder in the way
        raise job.failed(str(problem)) from None


def _address(entry: WeightsEntry) -> str:
    mirror, url = os.environ.get("RAPIDETR_MIRROR"), str(entry.url)
    address = f"{mirror.rstrip('/')}/{url.removeprefix(PREFIX)}" if mirror else url
    if not address.startswith(("http://", "https://")):
        raise ConfigError(f"RAPIDETR_MIRROR is {mirror!r}; expected an address that begins with http:// or https://")
    return address


def _find(entry: WeightsEntry, target: Path) -> Path | None:
    """The file in our cache or in an official one. A wrong file in ours is somebody's: it is reported, never deleted."""
    if target.is_file():
        if (md5 := _known_md5(target, target)) != entry.md5:
            raise HashMismatch(
                f"{target}: has md5 {md5}, expected {entry.md5}; move it away to download the published file, or load it by its path"
            )
        return target
    places = [folder / entry.filename for folder in official_cache_folders()]
    return next((p for p in places if p.is_file() and _known_md5(p, target) == entry.md5), None)


def _known_md5(path: Path, target: Path) -> str:
    """md5 of a file, remembered beside `target` with the file's size and time.

    Hashing 350 MB takes about 0.6 s, more than loading a network. What this gives up: damage that leaves size and time as
    they were goes unnoticed until the file is parsed; delete the `.ok` file to have it hashed again.
    """
    stamp = target.with_name(target.name + ".ok")
    about = path.stat()
    line = f"{about.st_size} {about.st_mtime_ns} {path}\n"
    with suppress(OSError, ValueError):
        md5, rest = stamp.read_text("utf-8").split(" ", 1)
        if rest == line:
            return md5
    with path.open("rb") as file:
        md5 = hashlib.file_digest(file, _md5).hexdigest()
    with suppress(OSError):  # in a cache that may only be read, hash each time
        stamp.write_text(f"{md5} {line}", "utf-8")
    return md5


def _md5() -> hashlib._Hash:
    return hashlib.md5(usedforsecurity=False)


@contextmanager
def _shown(progress: Progress | bool, name: str) -> Iterator[Progress]:
    """The caller's own function, a bar on stderr (none where that is no terminal), or silence."""
    if callable(progress):
        yield progress
        return
    with tqdm(desc=name, unit="B", unit_scale=True, file=sys.stderr, disable=None if progress else True) as bar:

        def show(done: int, total: int | None) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


def _opener() -> urllib.request.OpenerDirector:
    """http and https only: the usual opener would follow a redirection to ftp, or open a file."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        "ProxyHandler",
        "HTTPHandler",
        "HTTPSHandler",
        "HTTPRedirectHandler",
        "HTTPDefaultErrorHandler",
        "HTTPErrorProcessor",
        "UnknownHandler",
    ):
        opener.add_handler(getattr(urllib.request, handler)())
    return opener


class _CannotResumeError(ConnectionError):
    """What `.part` holds is of no use to this server; the next try begins anew."""


@dataclass
class _Job:
    """One download into `target`, by way of `target.part`, which outlives an interruption."""

    entry: WeightsEntry
    address: str
    target: Path
    timeout_s: float
    sleep: Callable[[float], object]
    now: Callable[[], float]

    def __post_init__(self) -> None:
        self.part = self.target.with_name(self.target.name + ".part")
        self.etag = self.target.with_name(self.target.name + ".part.etag")

    def failed(self, reason: str) -> DownloadError:
        name, md5 = self.entry.filename, self.entry.md5
        return DownloadError(
            f"could not download {name} from {self.address} ({reason}); fetch it by other means, md5 {md5}, and put it at {self.target}; "
            f"or set RAPIDETR_MIRROR to a copy of {PREFIX}, or RAPIDETR_HOME to a folder with weights/{name}"
        )

    def run(self, report: Progress) -> Path:
        """The verified file. What the network spoils is tried again, each time from where the last try ended."""
        reason = ""
        for attempt in range(_ATTEMPTS):
            if attempt:
                self.sleep(2.0 ** (attempt - 1))
            try:
                resumed, md5 = self.receive(report)
            except DownloadError:
                raise
            except (URLError, TimeoutError, ConnectionError, HTTPException) as problem:
                reason = str(getattr(problem, "reason", "") or problem) or type(problem).__name__
                if isinstance(getattr(problem, "reason", None), socket.gaierror):  # offline: waiting does not help
                    break
                continue
            self.etag.unlink(missing_ok=True)
            if md5 == self.entry.md5:
                os.replace(self.part, self.target)
                return self.target
            self.part.unlink()
            reason = f"it had md5 {md5}"
            if not resumed:  # a resumed file may be two versions in one: that is worth another try
                raise HashMismatch(
                    f"{self.address} delivered md5 {md5}, expected {self.entry.md5}; it was deleted; try later, or another RAPIDETR_MIRROR"
                )
        raise self.failed(reason)

    def receive(self, report: Progress) -> tuple[bool, str]:
        """Bring `.part` to its end: whether it was resumed, and the md5 of all of it."""
        digest, have = _md5(), 0
        with self.part.open("ab+") as file:
            file.seek(0)
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                have += len(chunk)
            if digest.hexdigest() == self.entry.md5:  # the cut came after the last byte
                return True, digest.hexdigest()
            try:
                opened = self.open(have)
            except _CannotResumeError:
                file.truncate(0)
                raise
            with opened as response:
                resumed = response.status == 206
                if not resumed:  # the server has no ranges, or another version of the file
                    file.truncate(0)
                    digest, have = _md5(), 0
                    self.etag.write_text(response.headers.get("ETag", ""), "utf-8")
                length = response.headers.get("Content-Length")
                total = have + int(length) if length and length.isdecimal() else None
                for chunk in self.chunks(response):
                    if max(have + len(chunk), total or 0) > _MAX_BYTES:
                        raise self.failed(f"the server sends more than {_MAX_BYTES} bytes")
                    file.write(chunk)
                    digest.update(chunk)
                    have += len(chunk)
                    report(have, total)
        if total is not None and have < total:
            raise ConnectionError(f"the connection ended after {have} of {total} bytes")
        return resumed, digest.hexdigest()

    def open(self, have: int) -> HTTPResponse:
        """An answer with the whole file (status 200), or with what follows the first `have` bytes (206)."""
        headers = {"User-Agent": f"rapidetr/{__version__}", "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            etag = self.etag.read_text("utf-8") if self.etag.is_file() else ""
            if etag.startswith('"'):  # a weak one may not be used here
                headers["If-Range"] = etag
        try:
            response: HTTPResponse = _opener().open(urllib.request.Request(self.address, headers=headers), timeout=self.timeout_s)
        except HTTPError as problem:
            problem.close()
            if problem.code not in (*_TRY_AGAIN, 416):
                raise self.failed(f"HTTP {problem.code} {problem.reason}") from None
            kind = _CannotResumeError if problem.code == 416 else ConnectionError
            raise kind(f"HTTP {problem.code} {problem.reason}") from None
        if response.status == 206 and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            response.close()
            raise _CannotResumeError(f"asked for bytes from {have} on, got {response.headers.get('Content-Range')!r}")
        return response

    def chunks(self, response: HTTPResponse) -> Iterator[bytes]:
        """The body as it comes; TimeoutError when it hardly comes."""
        began, got = self.now(), 0
        while chunk := response.read1(_CHUNK_BYTES):
            yield chunk
            got += len(chunk)
            if self.now() - began > self.timeout_s:
                if got < _SLOWEST_BYTES_PER_S * self.timeout_s:
                    raise TimeoutError(f"only {got} bytes came in {self.timeout_s:g} s")
                began, got = self.now(), 0
