"""`rapidetr predict` for a video file, a stream or a camera: one painted video, a JSON line for each frame."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tqdm import tqdm

from rapidetr.cli.console import Console
from rapidetr.cli.options import at_least
from rapidetr.core.errors import ConfigError
from rapidetr.pixels.decode import ImageLimits
from rapidetr.video import VideoReader, VideoResult, predict_video
from rapidetr.video.source import is_video, public_name
from rapidetr.video.writer import FORMATS

if TYPE_CHECKING:
    from rapidetr.runtime.detector import Detector, PredictOptions


def add_video_options(parser: ArgumentParser) -> None:
    group = parser.add_argument_group(
        "videos (a file, an rtsp:// or http(s):// stream, camera:0); --save-json writes a line for each frame"
    )
    group.add_argument("--track", action="store_true", help="follow things from frame to frame: numbers, trails, counts")
    group.add_argument("--stride", type=at_least(1), default=1, metavar="N", help="look at every N-th frame only (default: 1)")
    group.add_argument("--max-frames", type=at_least(1), metavar="N", help="stop after so many frames")
    group.add_argument("--drop", action="store_true", help="live: drop frames that cannot be looked at in time")
    group.add_argument("--stream", action="store_true", help="the http(s) address is a live video stream")


def has_video(args: Namespace) -> bool:
    """Whether the sources are a video; ConfigError where one comes with other sources."""
    videos = [source for source in args.sources if is_video(source, stream=args.stream)]
    if videos and len(args.sources) > 1:
        raise ConfigError(
            f"{videos[0]}: a video is predicted by itself, not with {len(args.sources) - 1} other sources; start one run each"
        )
    return bool(videos)


def run(
    args: Namespace,
    console: Console,
    limits: ImageLimits,
    load: Callable[[Namespace], Detector],
    choices: Callable[[Namespace, Detector, ImageLimits], PredictOptions],
) -> int:
    """Exit status: 0 whole, 1 where the source broke off or had gaps, 130 after Ctrl-C; what was done is written in any case."""
    if args.coco:
        raise ConfigError("--coco is for pictures; --save-json writes a line for each frame of a video")
    out = None if args.no_pictures else output_file(args.out, args.sources[0])
    reader = VideoReader(args.sources[0], stream=args.stream, stride=args.stride, max_frames=args.max_frames, limits=limits)
    if reader.source.live and not args.drop:
        console.say("note: nothing is dropped; --drop keeps up with a live source that is faster than the model")
    detector = load(args)
    for note in detector.notes:
        console.say(f"note: {note}")
    with tqdm(total=reader.expected, unit="frame", leave=False, disable=args.quiet or None) as bar:
        try:
            result = predict_video(
                detector,
                reader,
                out,
                json_lines=args.save_json,
                threshold=args.threshold,
                ids=args.track,
                drop=args.drop,
                batch_size=args.batch_size,
                masks=args.masks,
                on_frame=lambda _: bar.update(),
                **choices(args, detector, limits),
            )
        except KeyboardInterrupt as stop:
            console.error(str(stop))
            return 130
    for note in result.notes:
        console.say(f"note: {note}")
    console.say(summary(result, out))
    if result.problem:
        console.error(result.problem)
    console.finish({"model": detector.config.name, "license": detector.license, "video": out and str(out), **vars(result)})
    return 1 if result.problem else 0


def output_file(name: str | None, source: str) -> Path:
    """The painted video: `name` where it ends like one, else in the folder of that name, called like the source."""
    path = Path(name or "results")
    if path.suffix.lower() not in FORMATS:
        shown = urlsplit(public_name(source)) if "://" in source else None
        stem = PurePosixPath(source.replace(":", "/")).stem if shown is None else PurePosixPath(shown.path).stem or shown.hostname
        path = path / f"{stem or 'video'}.mp4"
    if path.resolve() == Path(source).resolve():
        raise ConfigError(f"{path}: is the video that is to be predicted; choose another --out, or --no-pictures")
    return path


def summary(result: VideoResult, out: Path | None) -> str:
    """Such as '90 frames (3.0 s), 170 detections, tracks: 2 car, 1 bus; video in result.mp4'."""
    parts = [f"{result.frames} frames ({result.seconds:.1f} s)", f"{result.detections} detections"]
    if result.tracks:
        parts.append("tracks: " + ", ".join(f"{number} {name or 'unnamed'}" for name, number in result.tracks.items()))
    if result.dropped:
        parts.append(f"{result.dropped} frames dropped")
    if result.reconnects:
        parts.append(f"{result.reconnects} times connected again")
    return ", ".join(parts) + (f"; video in {out}" if out else "")
