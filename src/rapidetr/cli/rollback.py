"""`rapidetr rollback`: put into use what was in use before."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from rapidetr.cli.console import Console
from rapidetr.cli.promote import add_reasons

EXAMPLES = """\
  rapidetr rollback registry/ --why "misses dogs at night"
  rapidetr rollback registry/ --json"""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("registry", metavar="REGISTRY", help="a folder of artifacts with one in use; once more goes one step further")
    add_reasons(parser)


def run(args: Namespace, console: Console) -> int:
    from rapidetr.deployment.registry import Registry

    entry = Registry(args.registry).rollback(who=args.who, why=args.why)
    console.say(f"{args.registry}: {entry.after} is current again, after {entry.before}")
    console.finish(entry.to_dict())
    return 0
