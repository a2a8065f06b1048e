"""`rapidetr doctor`: what is wrong with a dataset, where, and what it costs."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from tqdm import tqdm

from rapidetr.cli.console import Console
from rapidetr.cli.options import size_hw

EXAMPLES = """\
  rapidetr doctor data/
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
    console.finish(report.to_dict())
    return 0 if report.ok else 1
