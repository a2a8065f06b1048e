"""A source in, upright RGB frames with exact times out; broken connections are made again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from fractions import Fraction
from itertools import islice
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np

from rapidetr.core.errors import ConfigError, ImageError
from rapidetr.pixels.decode import ImageLimits
from rapidetr.pixels.read import one_line
from rapidetr.video.records import Frame
from rapidetr.video.source import load_av, parse_source

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

USUAL_RATE = Fraction(30)  # frames a second of sources that do not tell
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 8.0
HIGHEST_RATE = 1000  # above it a stream has told its clock instead


class VideoReader:
    """Opens a source at once (ImageMissing, ImageError), gives its frames once; every `stride`-th, at most `max_frames` of them.

    A broken connection to an http(s) or rtsp(s) address is made again after 0.5, 1, 2, ... 8 seconds, `retries` times between
    two frames; a video then goes on where it broke off, a live stream with what comes. `limits` bound the size of frames and the
    seconds that the network may be silent. `options` are FFmpeg's for the source, such as {"rtsp_transport": "udp"}.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        stream: bool = False,
        stride: int = 1,
        max_frames: int | None = None,
        limits: ImageLimits = ImageLimits(),  # noqa: B008 - frozen
        retries: int = 5,
        sleep: Callable[[float], object] | None = None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        if stride < 1 or (max_frames is not None and max_frames < 1) or retries < 0:
            raise ConfigError(f"stride {stride}, max_frames {max_frames}, retries {retries}; expected at least 1, 1 and 0")
        self.source = parse_source(source, stream=stream)
        self.stride, self.max_frames, self.limits, self.retries = stride, max_frames, limits, retries
        self._cancelled = Event()
        self._sleep = sleep or self._cancelled.wait
        self._options = {**self.source.options, **(options or {})}
        self._av = load_av()
        self._container: Any = None
        self._stream: VideoStream
        self._open()
        sound = self._stream.container.streams.audio
        self.sound = sound[0].codec_context.name if sound else None  # name of its codec
        self.rate = _rate(self._stream)  # frames a second, on average
        self.time_base = self._stream.time_base or Fraction(1, 90000)  # smallest step of time, in seconds
        self.pixel_aspect = self._stream.codec_context.sample_aspect_ratio or Fraction(1)
        self.duration = None if self.source.live else _duration(self._stream)  # seconds, where it is known
        self.count = self.reconnects = 0  # frames that were decoded and connections that were made again, so far
        self.damaged = 0  # packets that could not be decoded, or not wholly, so far
        self.first_damage = 0  # how many frames came before the first of them
        self.begin = Fraction(0)  # the source's own time of the first frame, once that was decoded
        self._last = -1 / self.rate
        self._shift: Fraction | None = None  # from the connection's time to ours, once known
        self._resuming = False

    @property
    def expected(self) -> int | None:
        """About how many frames will come, where that can be known."""
        if self.duration is None:
            return self.max_frames
        whole = max(1, round(self.duration * self.rate / self.stride))
        return min(whole, self.max_frames or whole)

    def __iter__(self) -> Iterator[Frame]:
        """ImageError, after the last good frame, where the source breaks off for good."""
        try:
            chosen = ((i, at, frame) for i, at, frame in self._timed() if i % self.stride == 0)
            for index, at, frame in islice(chosen, self.max_frames):
                yield Frame(index, at, upright(frame))
        finally:
            self.close()

    def cancel(self) -> None:
        """Called from another thread: no connection is made again."""
        self._cancelled.set()

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
            self._container = None

    def open_again(self) -> Any:
        """The same source once more, as an av container."""
        timeout = self.limits.timeout_s if self.source.network else None
        return self._av.open(self.source.address, format=self.source.format, options=self._options, timeout=timeout)

    def _open(self) -> None:
        """Connect; ImageError names what is wrong."""
        name = self.source.name
        try:
            self._container = self.open_again()
        except (self._av.FFmpegError, ValueError) as problem:
            raise ImageError(f"{name} cannot be opened as a video ({_reason(problem)}); check it with a player") from None
        if not self._container.streams.video:
            self.close()
            raise ImageError(f"{name} holds no pictures; expected a video")
        self._stream = self._container.streams.video[0]
        context = self._stream.codec_context
        if context.width * context.height > self.limits.max_pixels:
            self.close()
            limit = f"ImageLimits.max_pixels={self.limits.max_pixels}"
            raise ImageError(f"{name} is {context.height}x{context.width}, more than {limit}; raise the limit if you trust it")
        context.options = {"max_pixels": str(self.limits.max_pixels)}  # a stream can change its size later

    def _timed(self) -> Iterator[tuple[int, Fraction, VideoFrame]]:
        """(index, time, frame) of all frames, over all connections."""
        tries = 0
        while not self._cancelled.is_set():
            try:
                if self._container is None:
                    self._reconnect()
                for frame in self._decoded():
                    at = self._time_of(frame)
                    if at is not None:
                        tries, self._last = 0, at
                        self.count += 1
                        yield self.count - 1, at, frame
                problem = self._end()
                if problem is None:
                    return
            except (self._av.FFmpegError, ImageError) as error:
                problem = _reason(error)
            self.close()
            if not self.source.network or tries >= self.retries:
                again = f" and {tries} tries to reconnect" if self.source.network else ""
                raise ImageError(f"{self.source.name}: broke off after {self.count} frames{again} ({problem}); what came before is good")
            self._sleep(min(FIRST_WAIT_S * 2**tries, LONGEST_WAIT_S))
            tries += 1

    def _decoded(self) -> Iterator[VideoFrame]:
        """Frames of this connection; a packet that cannot be decoded is counted and passed over."""
        for packet in self._container.demux(self._stream):
            try:
                decoded = self._stream.decode(packet)
            except self._av.FFmpegError:
                self._damage()
                continue
            for frame in decoded:
                if frame.is_corrupt:
                    self._damage()
                yield frame

    def _damage(self) -> None:
        self.first_damage = self.first_damage if self.damaged else self.count
        self.damaged += 1

    def _time_of(self, frame: VideoFrame) -> Fraction | None:
        """Seconds since the first frame; None for a frame that came before the connection broke."""
        step = 1 / self.rate
        raw = self._last + step - (self._shift or 0) if frame.pts is None else frame.pts * (frame.time_base or self.time_base)
        if self._shift is None:
            self._shift = self._last + step - raw
            self.begin = self.begin if self.count else raw
        at = raw + self._shift
        if self._resuming and at <= self._last:
            return None
        self._resuming = False
        return max(at, self._last + self.time_base)  # some files repeat a time

    def _end(self) -> str | None:
        """Why the end of the data is not the end of the video; None where it is."""
        if self.source.live:
            return "the stream ended"
        missing = Fraction(0) if self.duration is None else self.duration - self._last - 1 / self.rate
        if missing > max(Fraction(1, 2), 2 / self.rate):  # headers round, and say how long the last frame is to be seen
            return f"the last {float(missing):.1f} of {float(self.duration or 0):.1f} seconds are missing"
        return None

    def _reconnect(self) -> None:
        """A new connection; a video goes on near where it broke off."""
        self._open()
        self.reconnects += 1
        if self.source.live:
            self._shift = None
        elif self.count:
            self._resuming = True
            with suppress(self._av.FFmpegError):  # what cannot be sought is decoded again from its beginning
                self._container.seek(int((self._last + self.begin) / self.time_base), stream=self._stream)


def frames(source: str | Path, **options: Any) -> Iterator[Frame]:
    """The frames of a video file, an http(s) or rtsp(s) address or `camera:0`; options: see `VideoReader`."""
    return iter(VideoReader(source, **options))


def upright(frame: VideoFrame) -> np.ndarray:
    """RGB uint8 [H, W, 3] as a player shows it: FFmpeg gives the angle that the metadata turn it by, counterclockwise."""
    pixels = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90) % 4))


def _rate(stream: VideoStream) -> Fraction:
    rate = stream.average_rate
    return rate if rate and rate <= HIGHEST_RATE else USUAL_RATE


def _duration(stream: VideoStream) -> Fraction | None:
    """Seconds that the header promises for the pictures alone: other tracks may be longer."""
    if stream.duration and stream.time_base:
        return stream.duration * stream.time_base
    tag = stream.metadata.get("DURATION", "")  # Matroska's: 00:00:02.000000000
    with suppress(ValueError):
        hours, minutes, seconds = tag.split(":")
        return 3600 * int(hours) + 60 * int(minutes) + Fraction(seconds)
    container: Any = stream.container
    return Fraction(container.duration, 10**6) if container.duration and len(container.streams) == 1 else None


def _reason(problem: Exception) -> str:
    """FFmpeg's words alone, without number, address and function."""
    return getattr(problem, "strerror", None) or one_line(problem)
