"""`rapidetr history`: what happened in a registry."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from rapidetr.cli.console import Console

EXAMPLES = """\
  rapidetr history registry/
  rapidetr history registry/ --json --quiet"""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("registry", metavar="REGISTRY", help="a folder of artifacts with one in use")


def run(args: Namespace, console: Console) -> int:
    from rapidetr.deployment.registry import Registry

    registry = Registry(args.registry)
    entries = registry.history()  # first: it tells a pointer that was lost from a registry that is empty
    current, baseline = registry.current, registry.baseline
    rows = [(str(e.number), e.when, e.who, e.action, e.before or "-", e.after or "-", " ".join(e.why.split())) for e in entries]
    console.table(("number", "when", "who", "action", "from", "to", "why"), rows)
    console.say(f"current: {current}\nbaseline: {baseline}")
    record = {"current": current, "baseline": baseline, "artifacts": registry.ids()}
    console.finish({**record, "history": [entry.to_dict() for entry in entries]})
    return 0
