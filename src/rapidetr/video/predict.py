"""The whole story of one video: decode, detect, follow; then paint, encode, write lines. Each part works while the others do."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import numpy as np

from rapidetr.core.errors import ConfigError, ImageError
from rapidetr.pixels.decode import Picture
from rapidetr.video.ahead import Ahead
from rapidetr.video.lines import JsonLines
from rapidetr.video.reader import VideoReader
from rapidetr.video.records import NO_TRACK, Frame, TrackedFrame
from rapidetr.video.tracks import Tracks
from rapidetr.video.writer import VideoWriter

if TYPE_CHECKING:
    from rapidetr.runtime.detector import Detector, PredictOptions

AHEAD = 2  # frames (or batches of them) that wait between two stages


@dataclass(frozen=True)
class VideoResult:
    """What became of a video.

    `tracks` counts tracks by class name · `problem` says why the result ends before the source or has gaps; None: it is whole.
    """

    frames: int
    detections: int
    tracks: dict[str, int]
    dropped: int
    reconnects: int
    seconds: float  # time of the last frame
    problem: str | None
    notes: tuple[str, ...]


def track(
    detector: Detector,
    source: str | Path | VideoReader,
    threshold: float = 0.5,
    *,
    ids: bool = True,
    drop: bool = False,
    batch_size: int = 1,
    **options: Unpack[PredictOptions],
) -> Generator[TrackedFrame, None, None]:
    """Frames with what was found in them, in order, while the next are decoded and looked at in two threads.

    `ids=False` leaves the tracking out. `drop=True` is for live sources: a frame that is not looked at before the next one comes
    is dropped and counted. `batch_size` frames go through the network together. Options: those of `Detector.predict`. No more
    than a few frames are held. What goes wrong in a stage is raised here, after the last good frame. Closing the generator ends
    the threads.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; expected at least 1")
    reader = source if isinstance(source, VideoReader) else VideoReader(source)
    tracks = Tracks(float(reader.rate)) if ids else None
    decoded = Ahead(reader, 1 if drop else AHEAD * batch_size, newest=drop)
    found = Ahead(_detect(detector, decoded, threshold, batch_size, options, tracks), AHEAD)
    return _run(found, decoded, reader)


def _run(found: Ahead[TrackedFrame], decoded: Ahead[Frame], reader: VideoReader) -> Generator[TrackedFrame, None, None]:
    try:
        yield from found
    finally:
        reader.cancel()
        decoded.stop()
        found.stop()
        found.join()
        decoded.join()


def _detect(
    detector: Detector, decoded: Ahead[Frame], threshold: float, batch_size: int, options: PredictOptions, tracks: Tracks | None
) -> Iterator[TrackedFrame]:
    for batch in _batches(decoded, batch_size):
        pictures = [Picture(frame.pixels) for frame in batch]
        for frame, detections in zip(batch, detector.predict(pictures, threshold, batch_size=batch_size, **options), strict=True):
            ids = np.full(len(detections), NO_TRACK, np.int64) if tracks is None else tracks.follow(detections, frame.time_s)
            seen = {} if tracks is None else dict(tracks.seen)
            yield TrackedFrame(frame.index, frame.time, frame.pixels, detections, ids, seen, decoded.dropped)


def _batches(frames: Iterable[Frame], size: int) -> Iterator[list[Frame]]:
    """Lists of `size` frames; what goes wrong comes after the frames before it."""
    batch: list[Frame] = []
    try:
        for frame in frames:
            batch.append(frame)
            if len(batch) == size:
                yield batch
                batch = []
    except Exception:
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def check_targets(address: str, *targets: str | Path | None) -> None:
    """ConfigError for a file to write that is the source, or that is named twice."""
    taken = [os.path.realpath(address.removeprefix("file:"))] if address.startswith("file:") else []
    for target in targets:
        if target is not None and os.path.realpath(target) in taken:
            raise ConfigError(f"{target}: is the video that is to be predicted, or named twice; choose another file to write")
        taken += [os.path.realpath(target)] if target is not None else []


def predict_video(
    detector: Detector,
    source: str | Path | VideoReader,
    out: str | Path | None = None,
    *,
    json_lines: str | Path | None = None,
    threshold: float = 0.5,
    ids: bool = True,
    drop: bool = False,
    batch_size: int = 1,
    masks: str = "rle",
    on_frame: Callable[[TrackedFrame], None] | None = None,
    **options: Unpack[PredictOptions],
) -> VideoResult:
    """Writes the painted video `out` and a JSON line for each frame, whichever is asked for; see `track` for the rest.

    Both files are written aside and moved into place at the end, also where the source breaks off (`problem` says so), on
    Ctrl-C and on an error of any stage but their own: what was done is kept. `masks` is their form in JSON: rle, polygons, none.
    Raises ImageError for a source without a single frame.
    """
    reader = source if isinstance(source, VideoReader) else VideoReader(source)
    check_targets(reader.source.address, out, json_lines)
    writer = VideoWriter(out, reader) if out is not None else None
    lines = JsonLines(json_lines, masks) if json_lines is not None else None
    sinks = [sink for sink in (writer, lines) if sink is not None]
    count = found = 0
    last: TrackedFrame | None = None
    problem: str | None = None
    try:
        with (
            closing(track(detector, reader, threshold, ids=ids, drop=drop, batch_size=batch_size, **options)) as tracked,
            ExitStack() as stack,
        ):
            for sink in sinks:
                stack.enter_context(sink)
            try:
                for frame in tracked:
                    for sink in sinks:
                        sink.add(frame)
                    last, count, found = frame, count + 1, found + len(frame.detections)
                    if on_frame is not None:
                        on_frame(frame)
            except ImageError as error:
                if last is None:
                    raise
                problem = str(error)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted after {count} frames; what was done is kept") from None
    if last is None:
        raise ImageError(f"{reader.source.name} holds no frames; expected a video")
    if problem is None and reader.damaged:
        problem = f"{reader.source.name}: {reader.damaged} packets could not be decoded, the first after {reader.first_damage} frames"
    return VideoResult(
        count,
        found,
        dict(Counter(last.tracks_seen)),
        last.dropped,
        reader.reconnects,
        last.time_s,
        problem,
        tuple(writer.notes if writer else ()),
    )
