"""`rapidetr promote`: put an artifact of a registry into use."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from rapidetr.cli.console import Console

EXAMPLES = """\
  rapidetr promote registry/ nano-384x384-onnxruntime-float32-1f0c2a9b --why "2.1 times as fast, AP kept"
  rapidetr promote registry/ nano-384x384-torch-float32-77ab01cd --who ann --json"""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("registry", metavar="REGISTRY", help="a folder of artifacts with one in use")
    parser.add_argument("id", metavar="ID", help="an artifact that the gate accepted, or a baseline; `rapidetr history` lists them")
    add_reasons(parser)


def add_reasons(parser: ArgumentParser) -> None:
    """Options of every verb that moves the pointer."""
    parser.add_argument("--why", default="", metavar="TEXT", help="kept in the history as given")
    parser.add_argument("--who", metavar="NAME", help="the same (default: the user of this process)")


def run(args: Namespace, console: Console) -> int:
    from rapidetr.deployment.registry import Registry

    entry = Registry(args.registry).promote(args.id, who=args.who, why=args.why)
    console.say(f"{args.registry}: {entry.after} is current, before it was {entry.before}")
    console.finish(entry.to_dict())
    return 0
