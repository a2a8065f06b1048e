"""`rapidetr doctor`: what is wrong with a dataset, where, and what it costs."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from rapidetr.cli.console import Console
from rapidetr.cli.options import size_hw

if TYPE_CHECKING:
    from PIL import Image

    from rapidetr.data.doctor import Report
    from rapidetr.data.records import Dataset, ImageRecord

SAMPLES = 12  # pictures of each split that are drawn with their annotations

EXAMPLES = """\
  rapidetr doctor data/
  rapidetr doctor data/ --out looks/
  rapidetr doctor data/ --size 576 --headers-only --json"""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", help="a dataset: COCO, YOLO or Pascal VOC")
    parser.add_argument("--size", type=size_hw, default=(384, 384), metavar="SIZE", help="input size that objects must be seen at (384)")
    parser.add_argument("--format", choices=("coco", "yolo", "voc"), help="where it cannot be told from the files")
    parser.add_argument("--headers-only", action="store_true", help="do not decode pictures: faster, finds exact copies alone")


def run(args: Namespace, console: Console) -> int:
    """0 without errors, 1 with some."""
    from rapidetr.data.doctor import examine

    with tqdm(unit="picture", leave=False, disable=args.quiet or None) as bar:

        def progress(done: int, total: int, path: str) -> None:
            bar.total = total
            bar.update(done - bar.n)

        report = examine(args.data, size_hw=args.size, full=not args.headers_only, format=args.format, progress=progress)
    console.say(report.to_text())
    if args.out:
        for path in draw_samples(report, Path(args.out)):
            console.say(f"drawn: {path}")
    console.finish(report.to_dict())
    return 0 if report.ok else 1


def draw_samples(report: Report, folder: Path) -> list[Path]:
    """Sheets of annotated pictures: some of each split, evenly spaced, and those that findings name."""
    from rapidetr.data.read import find_splits, read_source
    from rapidetr.draw.evaluation import to_jpeg
    from rapidetr.draw.sheet import make_sheet
    from rapidetr.training.report import write_files

    written, labels = [], None
    sources = find_splits(report.path, format=report.format or None)
    for split in report.splits:  # the first one, train where it can be read, has the classes
        dataset = read_source(sources[split], labels=labels, on_error="skip")
        labels = labels or dataset.labels
        by_path = {record.path: record for record in dataset.images}
        step = max(1, len(dataset) // SAMPLES)
        sheets = {f"samples-{split}": dataset.images[::step][:SAMPLES]}
        for finding in report.findings:
            if finding.split == split and finding.pictures:
                sheets[f"{finding.severity}-{finding.kind}-{split}"] = tuple(by_path[path] for path in finding.pictures)
        for name, records in sheets.items():
            drawn = draw_annotations(dataset, records)
            if drawn:
                write_files(folder, {f"{name}.jpg": to_jpeg(make_sheet(drawn))})
                written.append(folder / f"{name}.jpg")
    return written


def draw_annotations(dataset: Dataset, records: Sequence[ImageRecord]) -> list[Image.Image]:
    """The pictures with what the files say is in them; those that cannot be read are left out."""
    from rapidetr.core.errors import RapidetrError
    from rapidetr.draw.boxes import draw_detections
    from rapidetr.evaluation.worst import truth_of
    from rapidetr.pixels.decode import load_picture

    drawn = []
    for record in records:
        try:
            pixels = load_picture(record.path).pixels
            truth = truth_of(record, dataset.labels, pixels.shape[:2], masks=record.outlines is not None)
            drawn.append(draw_detections(truth, pixels))
        except RapidetrError:  # the report names it
            continue
    return drawn
