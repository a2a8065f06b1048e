"""Painted frames and the sound of the source -> a video file that is whole or not there."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from rapidetr.core.errors import ConfigError
from rapidetr.video.lines import PartFile
from rapidetr.video.paint import Painter
from rapidetr.video.reader import VideoReader
from rapidetr.video.records import TrackedFrame
from rapidetr.video.sound import Sound, why_no_sound
from rapidetr.video.source import load_av

FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}
# quality close to the source at a speed that leaves the processor to the detector
ENCODERS = {"libx264": {"preset": "veryfast", "crf": "21"}, "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "32", "b": "0"}}
BT709 = 1  # number of this color space, its primaries and its transfer in ISO/IEC 23091-2
LIMITED_RANGE = 1  # FFmpeg's number for luma 16..235, which players expect


class VideoWriter:
    """Encodes painted frames at their times; leaving the `with` makes the file whole, unless encoding itself failed.

    The time base is that of the source. H.264 and VP9 as encoded here need even sides: an odd one gets one more row or column,
    a copy of the last. Where a stream changes its size, pictures are scaled to the first. `notes` says what was changed or
    left out.
    """

    def __init__(self, path: str | Path, reader: VideoReader) -> None:
        self._file, self._reader, self._av = PartFile(path), reader, load_av()
        suffix = self._file.path.suffix.lower()
        if suffix not in FORMATS:
            raise ConfigError(f"{path}: cannot be written as a video; expected a name that ends in one of {' '.join(FORMATS)}")
        self._format = FORMATS[suffix]
        self._painter = Painter()
        self.notes: list[str] = []
        self._container: Any = None
        self._stream: Any = None
        self._sound: Sound | None = None
        self._size_hw, self._pts = (0, 0), -1

    def __enter__(self) -> VideoWriter:
        return self

    def add(self, frame: TrackedFrame) -> None:
        """OSError where it cannot be written."""
        picture = np.asarray(self._painter.paint(frame))
        try:
            if self._container is None:
                self._begin((picture.shape[0], picture.shape[1]))
            self._encode(picture, frame.time)
        except Exception:
            self._file.failed = True
            raise

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if self._container is not None:
                if not self._file.failed:
                    self._container.mux(self._stream.encode())
                self._container.close()
        except Exception:
            self._file.failed = True
            raise
        finally:
            if self._sound is not None:
                self._sound.close()
            self._file.finish()

    def _begin(self, size_hw: tuple[int, int]) -> None:
        self._file.begin()
        options = {"movflags": "faststart"} if self._format in ("mp4", "mov") else {}
        self._container = self._av.open(f"file:{self._file.part.resolve()}", "w", format=self._format, options=options)
        self._size_hw = (size_hw[0] + size_hw[0] % 2, size_hw[1] + size_hw[1] % 2)
        if self._size_hw != size_hw:
            sizes = [f"{height}x{width}" for height, width in (size_hw, self._size_hw)]
            self.notes.append(f"pictures of {sizes[0]} are written as {sizes[1]}: the encoder needs even sides")
        self._stream = self._add_pictures()
        without = why_no_sound(self._reader, self._container)
        if without:
            self.notes.append(without)
        elif self._reader.sound:
            self._sound = Sound(self._reader, self._container)

    def _add_pictures(self) -> Any:
        """The stream of pictures, with the source's rate, time base and shape of pixels."""
        name = "libvpx-vp9" if self._format == "webm" else "libx264"
        if name not in self._av.codecs_available:
            name = self._container.default_video_codec
        stream = self._container.add_stream(name, rate=self._reader.rate / self._reader.stride, options=ENCODERS.get(name, {}))
        stream.height, stream.width, stream.pix_fmt = *self._size_hw, "yuv420p"
        context = stream.codec_context
        context.time_base = self._reader.time_base
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = LIMITED_RANGE
        context.sample_aspect_ratio = self._reader.pixel_aspect
        return stream

    def _encode(self, picture: np.ndarray, time: Fraction) -> None:
        if self._sound is not None:
            self._sound.copy(time)
        height, width = self._size_hw
        missing = height - picture.shape[0], width - picture.shape[1]
        if missing in ((0, 1), (1, 0), (1, 1)):
            picture = np.pad(picture, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
        self._pts = max(self._pts + 1, round(time / self._reader.time_base))
        frame = self._av.VideoFrame.from_ndarray(picture, "rgb24").reformat(width, height, "yuv420p", dst_colorspace="ITU709")
        frame.pts, frame.time_base = self._pts, self._reader.time_base
        self._container.mux(self._stream.encode(frame))
