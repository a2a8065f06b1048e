"""What a word on the command line stands for: a video file, a stream or a camera, and what FFmpeg may open for it."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from rapidetr.core.errors import BackendMissing, ImageError, ImageMissing

SUFFIXES = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".flv", ".wmv", ".3gp", ".ogv"}
STREAM_SUFFIXES = SUFFIXES | {".m3u8", ".mpd"}
# A playlist inside a file or stream can name other addresses; these lists keep it from opening anything of another kind.
FILE_PROTOCOLS = "file"
HTTP_PROTOCOLS = "http,https,tcp,tls,crypto"
RTSP_PROTOCOLS = "rtsp,rtsps,rtp,srtp,tcp,tls,udp"


@dataclass(frozen=True)
class Source:
    """`name` for people, without a password · `address`, `format`, `options` as FFmpeg takes them · `live` never ends by itself."""

    name: str
    address: str
    options: dict[str, str]
    format: str | None = None
    live: bool = False
    network: bool = False  # can be connected to again


def is_video(text: str, *, stream: bool = False) -> bool:
    """Whether a word means a video; `stream` says that http(s) addresses of any suffix do."""
    if text.startswith("camera:") or _scheme(text) in ("rtsp", "rtsps"):
        return True
    if _scheme(text) in ("http", "https"):
        return stream or PurePosixPath(urlsplit(text).path).suffix.lower() in STREAM_SUFFIXES
    return Path(text).suffix.lower() in SUFFIXES and not os.path.isdir(text)


def parse_source(text: str | Path, *, stream: bool = False) -> Source:
    """The source that a path, an http(s) or rtsp(s) address or `camera:0` stands for; ImageMissing, ImageError.

    `stream` says that an http(s) address is live: its end is a broken connection, not the end of the video.
    """
    text = os.fspath(text)
    scheme, name = _scheme(text), public_name(text)
    if text.startswith("camera:"):
        return _camera(text)
    if scheme in ("rtsp", "rtsps"):
        return Source(name, text, {"protocol_whitelist": RTSP_PROTOCOLS, "rtsp_flags": "prefer_tcp"}, live=True, network=True)
    if scheme in ("http", "https"):
        return Source(name, text, {"protocol_whitelist": HTTP_PROTOCOLS}, live=stream, network=True)
    if scheme:
        raise ImageError(f"{name}: cannot be opened; expected a file, camera:0, or an address with http, https, rtsp or rtsps")
    if not os.path.lexists(text):
        raise ImageMissing(f"{text or repr(text)} is not there; check the path")
    # without the prefix FFmpeg would take a file called 'concat:a.mp4' for an instruction
    return Source(text, f"file:{os.path.abspath(text)}", {"protocol_whitelist": FILE_PROTOCOLS})


def public_name(text: str) -> str:
    """An address without its user, its password (which may hold / and @) and its query (which may hold a token); a path as it is."""
    return re.sub(r"(?<=://)[^?#]*@", "", re.sub(r"[?#].*", "", text)) if _scheme(text) else text


def load_av() -> Any:
    """The module av; BackendMissing without it."""
    try:
        import av
    except ImportError as problem:
        raise BackendMissing(f"videos need PyAV ({problem}); install it with: pip install 'rapidetr[video]'") from None
    return av


def _scheme(text: str) -> str:
    match = re.match(r"([a-z][a-z0-9+.-]*)://", text, re.IGNORECASE)
    return match[1].lower() if match else ""


def _camera(text: str) -> Source:
    """The camera of a number, or of the name that the system gives it."""
    which = text.removeprefix("camera:")
    if sys.platform == "darwin":
        return Source(text, which, {}, "avfoundation", live=True)
    if sys.platform == "win32":
        return Source(text, f"video={which}", {}, "dshow", live=True)
    return Source(text, f"/dev/video{which}" if which.isdecimal() else which, {}, "v4l2", live=True)
