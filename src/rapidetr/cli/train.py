"""`rapidetr train`: from a folder of pictures to a better checkpoint."""

from __future__ import annotations

import json
import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, BooleanOptionalAction, Namespace
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from rapidetr.cli.console import Console
from rapidetr.cli.options import amount, at_least, size_hw

if TYPE_CHECKING:
    from rapidetr.training.loop import Place

EXAMPLES = """\
  rapidetr train data/ --model nano --epochs 50 --out runs/mine
  rapidetr train data/ --model nano --stages head:5,blocks8-11:10@0.3,all:35@0.1 --patience 10 --out runs/staged
  rapidetr train data/ --model checkpoint.pth --batch-size 8 --accumulate 2 --precision bfloat16 --workers 4 --out runs/big
  torchrun --nproc-per-node 2 -m rapidetr train data/ --model small --batch-size 16 --out runs/two"""
SHARED = ("version", "seed")  # seed is an option of every verb


def add_arguments(parser: ArgumentParser) -> None:
    """One option for each field of the recipe, under its own name."""
    from rapidetr.training.recipe import Recipe

    parser.add_argument("data", metavar="DATA", help="a dataset: COCO, YOLO or Pascal VOC; its valid split is scored")
    parser.add_argument("--model", default="nano", metavar="NAME|FILE|RUN", help="what to start from (default: nano)")
    parser.add_argument("--format", choices=("coco", "yolo", "voc"), help="where it cannot be told from the files")
    parser.add_argument("--fresh", action="store_true", help="start anew; a run in --out is kept as OUT.bak-1, -2, ...")
    parser.add_argument("--save-minutes", type=amount, default=10.0, metavar="M", help="a crash loses at most this much (default: 10)")
    parser.add_argument("--workers", type=at_least(0), default=0, metavar="N", help="processes that make batches ahead (default: 0)")
    parser.add_argument("--accept-license", metavar="NAME", help="PML-1.0, for weights under it that you bring")
    parser.add_argument("--cache-gb", type=amount, default=0.0, metavar="G", help="memory for decoded pictures (default: 0)")
    parser.add_argument("--loggers", default="", metavar="A,B", help="of tensorboard, wandb and mlflow; metrics.jsonl is always there")
    parser.add_argument("--report", action=BooleanOptionalAction, default=True, help="draw batches, curves and report.html (default: yes)")
    group = parser.add_argument_group("recipe")
    for field in fields(Recipe):
        if field.name not in SHARED:
            default = "" if field.default in (None, "") else f" (default: {field.default})"
            option = "--size" if field.name == "size_hw" else f"--{field.name.replace('_', '-')}"
            group.add_argument(option, dest=field.name, default=None, help=field.metadata["about"] + default, **_kind(field.type))


def _kind(annotation: Any) -> dict[str, Any]:
    """How argparse reads a field of this type."""
    if annotation == "bool":
        return {"action": BooleanOptionalAction}
    if annotation.startswith("tuple[int"):
        return {"type": size_hw, "metavar": "SIZE"}
    if annotation.startswith("tuple"):
        return {"type": _numbers, "metavar": "A,B"}
    kinds: dict[str, Any] = {"int": int, "float": float, "str": str, "dict": _record}
    return {"type": kinds[annotation.split("[")[0].split(" ")[0]], "metavar": "X"}


def _numbers(text: str) -> tuple[float, ...] | str:
    try:
        return text if text == "auto" else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ArgumentTypeError(f"expected numbers separated by commas, or auto, got {text!r}") from None


def _record(text: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
        if isinstance(record, dict):
            return record
    except ValueError:
        pass
    raise ArgumentTypeError(f'expected a JSON object such as {{"betas": [0.9, 0.95]}}, got {text!r}')


def run(args: Namespace, console: Console) -> int:
    from rapidetr.training.recipe import Recipe
    from rapidetr.training.run import train

    bar = Bar(console)
    given = {field.name: getattr(args, field.name, None) for field in fields(Recipe) if field.name != "version"}
    done = train(
        args.data,
        model=args.model,
        format=args.format,
        out=args.out or "runs/train",
        device=args.device,
        threads=args.threads,
        workers=args.workers,
        cache_bytes=int(args.cache_gb * 2**30),
        save_minutes=args.save_minutes,
        fresh=args.fresh,
        accept_license=args.accept_license,
        loggers=args.loggers,
        report=args.report,
        say=bar.say,
        on_step=bar.step if bar.live else None,
        **{name: value for name, value in given.items() if value is not None},
    )
    bar.close()
    if os.environ.get("RANK", "0") == "0":  # one document, however many processes torchrun started
        console.finish({"folder": str(done.folder), **done.record})
    return 0


class Bar:
    """The pictures of the running epoch with loss and speed, under the lines that stay; only `live` on a terminal."""

    def __init__(self, console: Console) -> None:
        self.console, self.epoch = console, -1
        self.bar: Any = None
        self.live = sys.stderr.isatty() and not console.quiet

    def step(self, place: Place) -> None:
        if place.epoch != self.epoch:
            self.close()
            self.epoch = place.epoch
            told = {"desc": f"epoch {place.epoch + 1}/{place.epochs}", "postfix": {"loss": f"{place.loss:.3f}"}}
            self.bar = tqdm(total=place.total, initial=place.done, unit="image", leave=False, file=sys.stderr, **told)
        self.bar.set_postfix(loss=f"{place.loss:.3f}", refresh=False)
        self.bar.update(place.done - self.bar.n)

    def say(self, line: str) -> None:
        """A line above the bar."""
        with tqdm.external_write_mode(file=self.console.stream):
            self.console.say(line)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
