"""Downloads against a server on this machine: cut, wrong, refusing, silent, and used by two at once."""

from __future__ import annotations

import hashlib
import io
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rapidetr.checkpoints import download
from rapidetr.checkpoints.weights import PREFIX, WEIGHTS, WeightsEntry
from rapidetr.core.errors import ConfigError, DownloadError, HashMismatch, LicenseRefused

BODY = bytes(range(256)) * 9000  # 2.3 MB: more than two chunks
MD5 = hashlib.md5(BODY).hexdigest()
ENTRY = WeightsEntry("nano", "net.pth", PREFIX + "folder/tail.pth", MD5, "Apache-2.0", None, None, False, None, None)


class Server(ThreadingHTTPServer):
    """Answers with `body`; `script` holds what to do with each request before that becomes the rule."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.etag, self.ranges = BODY, '"one"', True
        self.script: list[Callable[[Handler], object]] = []
        self.seen: list[tuple[str, str | None, str | None]] = []  # path, Range, If-Range
        self.url = f"http://127.0.0.1:{self.server_port}/mirror"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.seen.append((self.path, self.headers["Range"], self.headers["If-Range"]))
        if self.server.script:
            self.server.script.pop(0)(self)
        else:
            self.answer()

    def answer(self, cut: int | None = None) -> None:
        body, wanted = self.server.body, self.headers["Range"]
        valid = self.headers["If-Range"] in (None, self.server.etag)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.server.ranges and valid else 0
        if start and start >= len(body):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.send_header("ETag", self.server.etag)
        self.end_headers()
        self.wfile.write(body[start:cut])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RF_HOME", "ROBOFLOW_HOME", "RAPIDETR_MIRROR", "RAPIDETR_OFFLINE", "XDG_CACHE_HOME", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAPIDETR_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    return tmp_path / "home" / "weights"


@pytest.fixture
def slept(server: Server, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    monkeypatch.setenv("RAPIDETR_MIRROR", server.url + "/")
    return []


def fetch(slept: list[float], **options: float) -> Path:
    return download.fetch(ENTRY, progress=False, sleep=slept.append, **options)  # type: ignore[arg-type]


def test_whole_then_cached(server: Server, slept: list[float], home: Path) -> None:
    shown: list[tuple[int, int | None]] = []
    path = download.fetch(ENTRY, progress=lambda done, total: shown.append((done, total)))
    assert path == home / "net.pth"
    assert path.read_bytes() == BODY
    assert shown[-1] == (len(BODY), len(BODY))
    assert [done for done, _ in shown] == sorted(done for done, _ in shown)
    assert fetch(slept) == path
    assert server.seen == [("/mirror/folder/tail.pth", None, None)]
    assert sorted(p.name for p in home.iterdir()) == ["net.pth", "net.pth.lock", "net.pth.ok"]


def test_cut_off_is_resumed_within_one_call(server: Server, slept: list[float]) -> None:
    server.script = [lambda h: h.answer(cut=1_000_000), lambda h: h.answer(cut=2_000_000)]
    assert fetch(slept).read_bytes() == BODY
    assert [r[1:] for r in server.seen] == [(None, None), ("bytes=1000000-", '"one"'), ("bytes=2000000-", '"one"')]
    assert slept == [1.0, 2.0]


def test_interrupted_call_is_resumed_by_the_next(server: Server, slept: list[float], home: Path) -> None:
    def stop(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download.fetch(ENTRY, progress=stop)
    have = (home / "net.pth.part").stat().st_size
    assert 0 < have < len(BODY)
    assert not (home / "net.pth").exists()
    assert fetch(slept).read_bytes() == BODY
    assert server.seen[1][1] == f"bytes={have}-"


def test_part_that_is_already_whole_needs_no_request(server: Server, slept: list[float], home: Path) -> None:
    home.mkdir(parents=True)
    (home / "net.pth.part").write_bytes(BODY)
    assert fetch(slept).read_bytes() == BODY
    assert server.seen == []


def test_server_without_ranges_starts_again(server: Server, slept: list[float]) -> None:
    server.ranges, server.script = False, [lambda h: h.answer(cut=1_000_000)]
    assert fetch(slept).read_bytes() == BODY
    assert len(server.seen) == 2


def test_file_that_changed_on_the_server_is_not_glued(server: Server, slept: list[float]) -> None:
    def cut_then_change(handler: Handler) -> None:
        server.body = b"x" * len(BODY)
        handler.answer(cut=1_000_000)
        server.body, server.etag = BODY, '"two"'

    server.script = [cut_then_change]
    assert fetch(slept).read_bytes() == BODY
    assert len(server.seen) == 2


@pytest.mark.parametrize("part", [b"y" * 1000, b"y" * (len(BODY) + 5)], ids=["wrong start", "416"])
def test_wrong_part_costs_one_more_request(server: Server, slept: list[float], home: Path, part: bytes) -> None:
    home.mkdir(parents=True)
    (home / "net.pth.part").write_bytes(part)
    assert fetch(slept).read_bytes() == BODY
    assert [r[1] for r in server.seen] == [f"bytes={len(part)}-", None]


def test_wrong_range_is_noticed(server: Server, slept: list[float], home: Path) -> None:
    def other_range(handler: Handler) -> None:
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes 0-{len(BODY) - 1}/{len(BODY)}")
        handler.send_header("Content-Length", str(len(BODY)))
        handler.end_headers()

    home.mkdir(parents=True)
    (home / "net.pth.part").write_bytes(BODY[:1000])
    server.script = [other_range]
    assert fetch(slept).read_bytes() == BODY
    assert [r[1] for r in server.seen] == ["bytes=1000-", None]


def test_wrong_hash_is_deleted_and_told(server: Server, slept: list[float], home: Path) -> None:
    server.body = b"not the weights"
    with pytest.raises(HashMismatch) as caught:
        fetch(slept)
    assert str(caught.value) == (
        f"{server.url}/folder/tail.pth delivered md5 {hashlib.md5(server.body).hexdigest()}, expected {MD5}; it was deleted; "
        "try later, or another RAPIDETR_MIRROR"
    )
    assert not list(home.glob("net.pth.part"))
    assert not (home / "net.pth").exists()


def test_file_of_the_user_with_a_wrong_hash_stays(server: Server, slept: list[float], home: Path) -> None:
    home.mkdir(parents=True)
    mine = home / "net.pth"
    mine.write_bytes(b"mine")
    with pytest.raises(HashMismatch) as caught:
        fetch(slept)
    assert str(caught.value) == (
        f"{mine}: has md5 {hashlib.md5(b'mine').hexdigest()}, expected {MD5}; "
        "move it away to download the published file, or load it by its path"
    )
    assert mine.read_bytes() == b"mine"
    assert server.seen == []


def test_changed_file_is_hashed_again(server: Server, slept: list[float]) -> None:
    path = fetch(slept)
    assert fetch(slept) == path
    path.write_bytes(BODY[:-1])
    with pytest.raises(HashMismatch):
        fetch(slept)


def test_stamp_spares_the_hash(server: Server, slept: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    fetch(slept)
    fetch(slept)
    monkeypatch.setattr(download, "_md5", None)
    assert fetch(slept).read_bytes() == BODY


def test_missing_page_is_final(server: Server, slept: list[float], home: Path) -> None:
    server.script = [lambda h: h.send_error(404)]
    with pytest.raises(DownloadError) as caught:
        fetch(slept)
    assert str(caught.value) == (
        f"could not download net.pth from {server.url}/folder/tail.pth (HTTP 404 Not Found); fetch it by other means, md5 {MD5}, "
        f"and put it at {home / 'net.pth'}; or set RAPIDETR_MIRROR to a copy of https://storage.googleapis.com/rfdetr/, "
        "or RAPIDETR_HOME to a folder with weights/net.pth"
    )
    assert slept == []


def test_failing_server_is_tried_again(server: Server, slept: list[float]) -> None:
    server.script = [lambda h: h.send_error(500), lambda h: h.send_error(503)]
    assert fetch(slept).read_bytes() == BODY
    assert slept == [1.0, 2.0]


def test_failing_server_is_given_up(server: Server, slept: list[float]) -> None:
    server.script = [lambda h: h.send_error(500)] * 9
    with pytest.raises(DownloadError, match=r"\(HTTP 500 Internal Server Error\)"):
        fetch(slept)
    assert len(server.seen) == 5
    assert slept == [1.0, 2.0, 4.0, 8.0]


def test_server_that_never_answers(slept: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("RAPIDETR_MIRROR", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(DownloadError, match=r"\(timed out\)"):
            fetch(slept, timeout_s=0.05)
    assert len(slept) == 4


def test_server_that_trickles(server: Server, slept: list[float]) -> None:
    clock = iter(range(0, 10**6, 31))  # every look at the clock is 31 s later
    server.body = b"z" * 1000
    with pytest.raises(DownloadError, match=r"\(only 1000 bytes came in 30 s\)"):
        download.fetch(ENTRY, progress=False, sleep=slept.append, now=lambda: float(next(clock)))


@pytest.mark.parametrize("honest", [True, False])
def test_endless_body_is_bounded(server: Server, slept: list[float], monkeypatch: pytest.MonkeyPatch, honest: bool) -> None:
    def unannounced(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(BODY)

    monkeypatch.setattr(download, "_MAX_BYTES", len(BODY) - 1)
    server.script = [] if honest else [unannounced]
    with pytest.raises(DownloadError, match=rf"\(the server sends more than {len(BODY) - 1} bytes\)"):
        fetch(slept)
    assert len(server.seen) == 1


def test_redirection_only_to_http(server: Server, slept: list[float], tmp_path: Path) -> None:
    def away(handler: Handler) -> None:
        handler.send_response(302)
        handler.send_header("Location", "ftp://127.0.0.1/x")
        handler.end_headers()

    def along(handler: Handler) -> None:
        handler.send_response(302)
        handler.send_header("Location", "/elsewhere")
        handler.end_headers()

    server.script = [along]
    assert fetch(slept).read_bytes() == BODY
    (tmp_path / "home" / "weights" / "net.pth").unlink()
    server.script = [away] * 9
    with pytest.raises(DownloadError, match="unknown url type: ftp"):
        fetch(slept)


@pytest.mark.parametrize("mirror", ["ftp://host/x", "file:///etc", "host/x"])
def test_mirror_must_be_http(monkeypatch: pytest.MonkeyPatch, mirror: str) -> None:
    monkeypatch.setenv("RAPIDETR_MIRROR", mirror)
    with pytest.raises(ConfigError, match=rf"^RAPIDETR_MIRROR is '{mirror}'; expected an address that begins with http:// or https://$"):
        download.fetch(ENTRY, progress=False)


def test_offline_by_wish(server: Server, slept: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAPIDETR_OFFLINE", "1")
    with pytest.raises(DownloadError, match=r"\(RAPIDETR_OFFLINE is set\)"):
        fetch(slept)
    assert server.seen == []
    monkeypatch.setenv("RAPIDETR_OFFLINE", "0")
    path = fetch(slept)
    monkeypatch.setenv("RAPIDETR_OFFLINE", "1")
    assert fetch(slept) == path


def test_no_network_does_not_wait(slept: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(*_: object, **__: object) -> None:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    monkeypatch.setenv("RAPIDETR_MIRROR", "http://weights.example")
    with pytest.raises(DownloadError, match="Temporary failure in name resolution"):
        fetch(slept)
    assert slept == []


def test_folder_that_cannot_be_made(server: Server, slept: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("RAPIDETR_HOME", str(tmp_path / "file"))
    with pytest.raises(DownloadError, match="Not a directory"):
        fetch(slept)
    assert server.seen == []


@pytest.mark.parametrize("variable", ["RF_HOME", "ROBOFLOW_HOME", None])
def test_official_cache_is_used_and_left_alone(
    server: Server, slept: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None
) -> None:
    folder = tmp_path / "official" if variable else tmp_path / "user" / ".roboflow" / "models"
    folder.mkdir(parents=True)
    if variable:
        monkeypatch.setenv(variable, str(folder))
    (folder / "net.pth").write_bytes(BODY)
    assert fetch(slept) == folder / "net.pth"
    (folder / "net.pth").write_bytes(b"fine-tuned by someone")
    assert fetch(slept) == download.cache_folder() / "net.pth"
    assert [p.name for p in folder.iterdir()] == ["net.pth"]
    assert (folder / "net.pth").read_bytes() == b"fine-tuned by someone"
    assert len(server.seen) == 1


def test_two_threads_download_once(server: Server, slept: list[float]) -> None:
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(fetch(slept))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 2
    assert len(server.seen) == 1


def test_two_processes_download_once(server: Server, slept: list[float]) -> None:
    code = (
        "import sys; from rapidetr.checkpoints import download; from rapidetr.checkpoints.weights import *\n"
        f"entry = WeightsEntry('nano', 'net.pth', PREFIX + 'tail', '{MD5}', '', None, None, False, None, None)\n"
        "sys.stdin.readline(); print(download.fetch(entry))"
    )
    pipe = subprocess.PIPE
    both = [subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(2)]
    outputs = [process.communicate("go\n") for process in both]
    assert outputs == [(f"{download.cache_folder() / 'net.pth'}\n", "")] * 2  # and no progress bar where stderr is no terminal
    assert len(server.seen) == 1


def test_bar_on_a_terminal(server: Server, slept: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    download.fetch(ENTRY)
    assert "net.pth: 100%" in terminal.getvalue()
    assert "2.30M/2.30M" in terminal.getvalue()


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert download.cache_folder() == tmp_path / "home" / "weights"
    monkeypatch.delenv("RAPIDETR_HOME")
    assert download.cache_folder() == tmp_path / "user" / ".cache" / "rapidetr" / "weights"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert download.cache_folder() == tmp_path / "user" / ".cache" / "rapidetr" / "weights"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert download.cache_folder() == tmp_path / "xdg" / "rapidetr" / "weights"


def test_platform_weights_are_never_downloaded() -> None:
    with pytest.raises(LicenseRefused) as caught:
        download.fetch(WEIGHTS["xlarge"])
    assert str(caught.value) == "rf-detr-xlarge.pth is under PML-1.0 and is never downloaded; give the path of your own copy"
