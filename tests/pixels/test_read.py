"""Paths, addresses and patterns: what is found, what is refused, and when a server is given up."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rapidetr.core.errors import ImageError, ImageMissing
from rapidetr.pixels.decode import ImageLimits, load_picture
from rapidetr.pixels.find import find_images
from rapidetr.pixels.read import read

RGB = np.arange(8 * 9 * 3, dtype=np.uint8).reshape(8, 9, 3)


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, "PNG")
    return file.getvalue()


class Site(BaseHTTPRequestHandler):
    """One address for each kind of trouble."""

    closing = threading.Event()

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        with suppress(OSError):  # the client went away, as it should
            getattr(self, "go_" + self.path.partition("?")[0].strip("/").partition("/")[0].partition(".")[0], self.go_missing)()

    def answer(self, body: bytes, length: int | None = None, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if length != -1:
            self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def go_missing(self) -> None:
        self.answer(b"no", status=404)

    def go_good(self) -> None:
        self.answer(png())

    def go_denied(self) -> None:
        self.answer(b"no", status=403)

    def go_moved(self) -> None:
        self.answer(b"", status=302, Location="/good.png")

    def go_away(self) -> None:
        self.answer(b"", status=302, Location="file:///etc/hostname")

    def go_ftp(self) -> None:
        self.answer(b"", status=302, Location="ftp://127.0.0.1/a.png")

    def go_round(self) -> None:
        self.answer(b"", status=302, Location="/round")

    def go_text(self) -> None:
        self.answer(b"<html>sorry</html>")

    def go_short(self) -> None:
        self.answer(png()[:50], length=len(png()))

    def go_promise(self) -> None:
        self.answer(b"", length=10 * 2**30)

    def go_flood(self) -> None:
        self.answer(b"", length=-1)
        while not self.closing.is_set():
            self.wfile.write(b"\xff" * 2**16)

    def go_never(self) -> None:
        self.closing.wait(30)

    def go_drip(self) -> None:
        self.answer(b"", length=1000)
        self.drip()

    def go_headers(self) -> None:
        self.wfile.write(b"HTTP/1.0 200 OK\r\nX-Slow: ")
        self.drip()

    def drip(self) -> None:
        """Each byte comes well within the time-out of a single read; stops when the client hangs up."""
        for _ in range(600):
            self.wfile.write(b"x")
            self.wfile.flush()
            if self.closing.wait(0.05):
                return


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    Site.closing.clear()
    yield f"http://127.0.0.1:{server.server_port}"
    Site.closing.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.mark.parametrize("address", ["/good.png", "/moved", "/good.png?größe=ein Bild"])
def test_a_picture_from_an_address(site: str, address: str) -> None:
    picture = load_picture(site + address)
    assert np.array_equal(picture.pixels, RGB)
    assert picture.source == site + address


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("/missing", "URL was refused with 404 Not Found; check the address"),
        ("/denied", "URL was refused with 403 Forbidden; check the address"),
        ("/ftp", "URL cannot be read: unknown url type: ftp; check the address and the network"),
        ("/short", f"URL broke off after 50 of {len(png())} bytes; try again"),
        ("/promise", "URL sends more than ImageLimits.max_bytes=1000000 bytes; raise the limit if you trust it"),
        ("/flood", "URL sends more than ImageLimits.max_bytes=1000000 bytes; raise the limit if you trust it"),
        ("/text", "URL is not a picture of a known format (it begins with b'<html>so'); expected "),
        ("/away", "URL was refused with 302 Found - Redirection to url 'file:///etc/hostname' is not allowed; check the address"),
        ("/round", "URL was refused with 302 The HTTP server returned a redirect error that would lead to an infinite loop. The last"),
    ],
)
def test_what_servers_do(site: str, address: str, message: str) -> None:
    with pytest.raises(ImageError) as problem:
        load_picture(site + address, ImageLimits(max_bytes=1_000_000))
    assert str(problem.value).startswith(message.replace("URL", site + address))
    assert "\n" not in str(problem.value)
    assert isinstance(problem.value, ImageMissing) == (address == "/missing")


@pytest.mark.parametrize("address", ["/never", "/drip", "/headers"])
def test_the_time_limit_is_for_the_whole_download(site: str, address: str) -> None:
    with pytest.raises(ImageError) as problem:
        read(site + address, ImageLimits(timeout_s=0.3))
    expected = f"{site}{address} did not deliver within 0.3 s (ImageLimits.timeout_s); try again later, or download it yourself"
    assert str(problem.value) == expected
    for thread in threading.enumerate():  # what waits for the server ends, too: its socket was shut
        if thread.name == "download":
            thread.join(20)
            assert not thread.is_alive()


def test_a_server_that_is_not_there_and_addresses_that_are_none() -> None:
    with pytest.raises(ImageError, match=r"^http://127\.0\.0\.1:1/a\.png cannot be read: .*refused; check the address and the network$"):
        read("http://127.0.0.1:1/a.png")
    with pytest.raises(ImageError, match=r"^http:// cannot be read: no host given; check the address and the network$"):
        read("http://")
    with pytest.raises(ImageError, match=r"^http://\[bad cannot be read: "):
        read("http://[bad")


def test_paths_that_are_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(ImageMissing, match=r"nowhere\.jpg is not there; check the path$"):
        read(tmp_path / "nowhere.jpg")
    with pytest.raises(FileNotFoundError, match=r"is not there"):
        read(str(tmp_path / "nowhere.jpg" / "deeper"))
    with pytest.raises(ImageError, match=r"is a folder; expected a picture; name a file in it$"):
        read(tmp_path)
    with pytest.raises(ImageError, match=r"^/dev/zero is not a regular file; save the picture to one first$"):
        read("/dev/zero")
    with pytest.raises(ImageError, match=r"^'a\\x00b' cannot be read: embedded null byte; check its name and permissions$"):
        read("a\0b")
    with pytest.raises(ImageError, match=r"cannot be read: File name too long; check its name and permissions$"):
        read("x" * 5000)
    large = tmp_path / "large.png"
    large.write_bytes(bytes(1001))
    with pytest.raises(
        ImageError, match=r"large\.png has 1001 bytes, more than ImageLimits\.max_bytes=1000; raise the limit if you trust it$"
    ):
        read(large, ImageLimits(max_bytes=1000))


@pytest.fixture
def album(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (
        "b.JPG",
        "a.png",
        "notes.txt",
        ".hidden.png",
        "sub/d.webp",
        "sub/c.jpeg",
        "sub/deep/e.tif",
        ".cache/f.png",
        "[1].png",
        "1.png",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_folders_give_their_pictures_and_those_below(album: Path) -> None:
    expected = ["1.png", "[1].png", "a.png", "b.JPG", "sub/c.jpeg", "sub/d.webp", "sub/deep/e.tif"]
    assert find_images([str(album)]) == [str(album / name) for name in expected]


def test_patterns_files_and_addresses(album: Path) -> None:
    assert find_images(["*.png"]) == ["1.png", "[1].png", "a.png"]
    assert find_images(["**/*.*"]) == ["1.png", "[1].png", "a.png", "b.JPG", "sub/c.jpeg", "sub/d.webp", "sub/deep/e.tif"]
    assert find_images(["[1].png"]) == ["[1].png"]  # the file of that name, not what the pattern matches
    assert find_images(["[a].png"]) == ["a.png"]
    assert find_images(["notes.txt"]) == ["notes.txt"]  # named by the user: decoding will tell
    address = "https://example.org/a*.png?x=[1]"
    assert find_images([address, "a.png", address]) == [address, "a.png"]


def test_each_picture_once_in_the_order_of_the_arguments(album: Path) -> None:
    assert find_images(["sub/d.webp", "sub", "./a.png", "a.png", str(album / "a.png")]) == [
        "sub/d.webp",
        "sub/c.jpeg",
        "sub/deep/e.tif",
        "./a.png",
    ]
    assert find_images([]) == []


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("empty", "empty holds no pictures; expected files that end in one of .jpg .jpeg "),
        ("more/*.png", "more/*.png matches no pictures; expected files that end in one of .jpg "),
        ("*.txt", "*.txt matches no pictures; "),
        ("lost.png", "lost.png is not there; check the path"),
        ("", "'' is not there; check the path"),
    ],
)
def test_arguments_that_stand_for_nothing(album: Path, argument: str, message: str) -> None:
    with pytest.raises(ImageMissing) as problem:
        find_images(["a.png", argument])
    assert str(problem.value).startswith(message)
