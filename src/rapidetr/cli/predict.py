"""`rapidetr predict`: pictures in, annotated pictures and numbers out."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

import rapidetr
from rapidetr.cli import video_source
from rapidetr.cli.console import Console
from rapidetr.cli.options import add_model_options, at_least, load_options, size_hw
from rapidetr.cli.results import Results
from rapidetr.core.detections import Detections
from rapidetr.core.errors import ImageError, ImageMissing
from rapidetr.pixels.decode import ImageLimits, read
from rapidetr.pixels.find import find_images
from rapidetr.pixels.read import is_url

if TYPE_CHECKING:
    from rapidetr.runtime.detector import Detector, PredictOptions

EXAMPLES = """\
  rapidetr predict street.jpg
  rapidetr predict street.jpg photos/ 'more/*.png' --model nano --threshold 0.4 --out results/ --save-json results.json
  rapidetr predict photos/ --model checkpoint_best_total.pth --classes person,car --no-pictures --json
  rapidetr predict aerial.tif --model large --tile 640x640 --overlap 0.3
  rapidetr predict street.jpg --model seg-nano --size 312x624 --masks polygons --save-json results.json
  rapidetr predict traffic.mp4 --track --out result.mp4 --save-json lines.jsonl"""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="pictures, folders, patterns and http(s) addresses; or one video")
    _add_model_options(parser)
    group = parser.add_argument_group("what to keep")
    group.add_argument("--threshold", type=float, default=0.5, metavar="T", help="scores must lie above it (default: 0.5)")
    group.add_argument("--classes", metavar="A,B", help="only these: names or indices, separated by commas")
    group.add_argument("--max-detections", type=at_least(1), metavar="N", help="at most this many a picture")
    group.add_argument("--nms", type=float, metavar="IOU", help="suppress boxes of one class that overlap by more")
    group.add_argument("--one-label-per-query", action="store_true", help="of several classes for one box keep the best")
    group.add_argument("--include-unnamed", action="store_true", help="keep outputs of the network that name no class")
    group.add_argument("--tile", type=size_hw, metavar="SIZE", help="cut large pictures into tiles of 640, or 640x480 (height x width)")
    group.add_argument("--overlap", type=float, default=0.2, metavar="PART", help="of neighboring tiles (default: 0.2)")
    group = parser.add_argument_group("reading and writing")
    group.add_argument("--batch-size", type=at_least(1), default=1, metavar="N", help="pictures that go through together (default: 1)")
    group.add_argument("--prefetch", type=at_least(0), default=1, metavar="N", help="pictures read ahead (default: 1)")
    group.add_argument("--max-pixels", type=at_least(1), metavar="N", help="refuse larger pictures, as decompression bombs are")
    group.add_argument("--no-pictures", action="store_true", help="write no annotated pictures")
    group.add_argument("--save-json", metavar="FILE", help="write what --json prints")
    group.add_argument("--masks", choices=("rle", "polygons", "none"), default="rle", help="form of masks in JSON (default: rle)")
    group.add_argument("--coco", metavar="FILE", help="write COCO results; FILE.images.json says which image_id is which picture")
    video_source.add_video_options(parser)


def _add_model_options(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("--model", default="nano", metavar="NAME|FILE", help="see `rapidetr models` (default: nano)")
    add_model_options(group)


def run(args: Namespace, console: Console) -> int:
    limits = ImageLimits(max_pixels=args.max_pixels) if args.max_pixels else ImageLimits()
    if video_source.has_video(args):
        return video_source.run(args, console, limits, load, choices)
    sources, missing = find(args.sources)
    if not sources:
        raise ImageMissing("; ".join(missing.values()))
    results = Results(args, console, sources, limits)
    detector = load(args)
    for note in detector.notes:
        console.say(f"note: {note}")
    options = choices(args, detector, limits)
    pictures = sources if results.folder is None else fetched(sources, results.held, limits)
    with tqdm(total=len(sources), unit="picture", leave=False, disable=args.quiet or None) as bar:
        batches = detector.predict_iter(pictures, args.threshold, batch_size=args.batch_size, prefetch=args.prefetch, **options)
        for batch in batches:
            with tqdm.external_write_mode(console.stream):
                results.add(batch)
            bar.update(len(batch))
    results.add([Detections.empty(detector.labels, source=source, error=message) for source, message in missing.items()])
    return results.close(detector)


def find(arguments: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """(pictures of all arguments, argument -> message for those that have none)."""
    good, missing = [], {}
    for argument in arguments:
        try:
            find_images([argument])
            good.append(argument)
        except ImageMissing as problem:
            missing[argument] = str(problem)
    return find_images(good), missing


def load(args: Namespace) -> Detector:
    return rapidetr.load(args.model, **load_options(args))


def choices(args: Namespace, detector: Detector, limits: ImageLimits) -> PredictOptions:
    """What to keep; ConfigError for a class that the detector does not know, before any picture is read."""
    words = args.classes.split(",") if args.classes else []
    classes = [int(word) if word.isdecimal() and word not in detector.class_names else word for word in words]
    return {
        "classes": detector.labels.indices(classes) if classes else None,
        "max_detections": args.max_detections,
        "nms": args.nms,
        "one_label_per_query": args.one_label_per_query,
        "include_unnamed": args.include_unnamed,
        "tile": args.tile,
        "overlap": args.overlap,
        "limits": limits,
    }


def fetched(sources: Iterable[str], held: dict[str | None, Any], limits: ImageLimits) -> Iterator[Any]:
    """The sources; addresses as bytes that stay in `held`, so that what is drawn on is what was looked at."""
    for source in sources:
        if is_url(source):
            with suppress(ImageError):  # the detector tries once more, and reports
                held[source] = read(source, limits)
        yield held.get(source, source)
