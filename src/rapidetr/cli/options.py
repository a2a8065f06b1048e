"""Options that every verb has, and the kinds of values that options take."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import Any

EXIT_STATUS = "exit status: 0 done; 1 done in part, or a limit not kept; 2 wrong use or input"


def add_shared_options(parser: argparse.ArgumentParser) -> None:
    """The same on every verb, so that scripts need not know which verb uses which."""
    group = parser.add_argument_group("options of every verb (accepted also where they change nothing)")
    group.add_argument("--json", action="store_true", help="print one JSON document as the last line; all else goes to stderr")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps (default: auto)")
    group.add_argument("--threads", type=at_least(1), metavar="N", help="CPU threads (default: torch decides)")
    group.add_argument("--seed", type=int, metavar="N", help="makes random choices reproducible")
    group.add_argument(
        "--out", metavar="FOLDER", help="where to write (predict: results, or a video file; evaluate: a report; doctor: pictures)"
    )
    group.add_argument("--quiet", action="store_true", help="print errors and, with --json, the document; nothing else")
    group.add_argument("--debug", action="store_true", help="show the trace of an error")


def add_model_options(group: Any) -> None:
    """How `rapidetr.load` makes a detector, for verbs that run one."""
    group.add_argument("--variant", metavar="NAME", help="the model, where a file does not tell")
    group.add_argument("--weights", choices=("pretrained", "random"), default="pretrained", help="random ones find nothing, but as fast")
    group.add_argument("--size", type=size_hw, metavar="SIZE", help="input size: 384, or 384x512 (height x width)")
    group.add_argument("--decoder-layers", type=at_least(1), metavar="N", help="stop early: faster, less accurate")
    group.add_argument("--queries", type=at_least(1), metavar="N", help="use fewer: faster, fewer detections")
    group.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: float32")
    group.add_argument("--accept-license", metavar="NAME", help="PML-1.0, for weights under it that you bring")


def load_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keywords of `rapidetr.load` from `add_model_options` and the shared options, all of them JSON types but `size_hw`."""
    return {
        "model": args.variant,
        "weights": args.weights,
        "device": args.device,
        "threads": args.threads,
        "dtype": args.dtype,
        "size_hw": args.size,
        "decoder_layers": args.decoder_layers,
        "queries": args.queries,
        "accept_license": args.accept_license,
        "seed": args.seed,
    }


class at_least:  # noqa: N801 - argparse names the type in messages
    """Argparse type: a whole number of at least `least`."""

    def __init__(self, least: int) -> None:
        self.least = least

    def __call__(self, text: str) -> int:
        if not re.fullmatch(r"-?\d{1,18}", text) or int(text) < self.least:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {self.least}, got {text!r}")
        return int(text)


def size_hw(text: str) -> tuple[int, int]:
    """Argparse type: (height, width) of '384x512', or of '384' for a square."""
    match = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", text)
    if not match or not int(match[1]) or (match[2] and not int(match[2])):
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH in pixels such as 384x512, or one number, got {text!r}")
    return int(match[1]), int(match[2] or match[1])


class several:  # noqa: N801 - argparse names the type in messages
    """Argparse type: values separated by commas."""

    def __init__(self, one: Callable[[str], Any]) -> None:
        self.one = one

    def __call__(self, text: str) -> list[Any]:
        return [self.one(word) for word in text.split(",")]


def rate(text: str) -> float:
    """Argparse type: a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def amount(text: str) -> float:
    """Argparse type: a number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {text!r}")
    return value


def score(text: str) -> float:
    """Argparse type: a number from 0 to 1."""
    value = amount(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"expected a score between 0 and 1, got {text!r}")
    return value


def part(text: str) -> float:
    """Argparse type: 0.05 of '5%' or '0.05'."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a part such as 5% or 0.05, got {text!r}")
    return value
