"""Finds the verb, runs it, and turns what goes wrong into one line and an exit status."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType

from rapidetr import __version__
from rapidetr.cli.console import Console
from rapidetr.cli.options import EXIT_STATUS, add_shared_options
from rapidetr.core.errors import RapidetrError

# verb -> module and help. A module has EXAMPLES, add_arguments(parser) and run(args, console) -> exit status, and imports
# nothing heavy before `run`.
VERBS = {
    "predict": ("rapidetr.cli.predict", "find objects in pictures; write annotated pictures and JSON"),
    "doctor": ("rapidetr.cli.doctor", "say what is wrong with a dataset, where, and what it costs"),
    "train": ("rapidetr.cli.train", "fine-tune a model on a dataset; goes on by itself where it was cut off"),
    "evaluate": ("rapidetr.cli.evaluate", "score a model on a split of a dataset: AP, classes, worst pictures"),
    "choose": ("rapidetr.cli.choose", "find the smallest configuration that keeps a service level"),
    "models": ("rapidetr.cli.models", "list the published models: size, accuracy, speed, licence"),
    "info": ("rapidetr.cli.info", "say what a checkpoint, an .onnx file or an artifact holds"),
    "convert": ("rapidetr.cli.convert", "write a checkpoint in our format or the official one"),
    "optimize": ("rapidetr.cli.optimize", "make faster artifacts, adopt only what is proven on this machine"),
    "export": ("rapidetr.cli.export", "write a model for other programs, and say how far it is from the source"),
    "history": ("rapidetr.cli.history", "show a registry: what is in use, and who changed that, when and why"),
    "promote": ("rapidetr.cli.promote", "put an artifact of a registry into use"),
    "rollback": ("rapidetr.cli.rollback", "put into use what was in use before"),
    "diff": ("rapidetr.cli.diff", "show where two models or artifacts part on a picture, stage by stage"),
    "serve": ("rapidetr.cli.serve", "answer over HTTP: API, web page, metrics"),
    "batch": ("rapidetr.cli.batch", "predict over millions of pictures, on Ray or alone; resumable"),
    "bench": ("rapidetr.cli.bench", "measure a model end to end on your pictures; compare two"),
    "lock": ("rapidetr.cli.lock", "write down this machine and installation; say what has drifted since"),
    "licenses": ("rapidetr.cli.licenses", "list the licences of weights and dependencies"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status of a command line; argparse ends by itself with 0 after --help and 2 after wrong use."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] not in VERBS:
        parser = top_parser()
        parser.parse_args(words)
        parser.error("expected a verb")
    verb = import_module(VERBS[words[0]][0])
    args = verb_parser(words[0], verb).parse_intermixed_args(words[1:])
    console = Console(args.json, args.quiet)
    return guarded(lambda: verb.run(args, console), console, debug=args.debug)


def top_parser() -> argparse.ArgumentParser:
    verbs = "\n".join(f"  {name:10}{text}" for name, (_, text) in VERBS.items())
    parser = argparse.ArgumentParser(
        "rapidetr",
        usage="rapidetr VERB [options]",
        description="RF-DETR, the real-time detection transformer.",
        epilog=f"verbs:\n{verbs}\n\nexamples:\n  rapidetr predict street.jpg\n  rapidetr predict --help\n\n{EXIT_STATUS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("verb", nargs="?", metavar="VERB", choices=VERBS, help="what to do; options follow it")
    parser.add_argument("--version", action="version", version=f"rapidetr {__version__}")
    return parser


def verb_parser(name: str, verb: ModuleType) -> argparse.ArgumentParser:
    """The parser of one verb: its own arguments, and those that all share."""
    parser = argparse.ArgumentParser(
        f"rapidetr {name}",
        description=VERBS[name][1],
        epilog=f"examples:\n{verb.EXAMPLES}\n\n{EXIT_STATUS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verb.add_arguments(parser)
    add_shared_options(parser)
    return parser


def guarded(run: Callable[[], int], console: Console, *, debug: bool) -> int:
    """The exit status of `run`; 2 and one line for an error, 130 when interrupted, 1 when nobody reads the output any more."""
    try:
        status = run()
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at exit
        return 1
    except KeyboardInterrupt:
        console.error("interrupted")
        return 130
    except Exception as problem:
        if debug:
            traceback.print_exc()
        expected = isinstance(problem, RapidetrError | OSError)
        message = str(problem) if expected else f"unexpected {type(problem).__name__}: {problem}; run again with --debug and report it"
        console.error(message)
        console.finish({"error": message})
        return 2
