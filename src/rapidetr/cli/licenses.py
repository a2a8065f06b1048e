"""`rapidetr licenses`: what may be used under which terms."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from rapidetr.checkpoints.license_table import table
from rapidetr.cli.console import Console

EXAMPLES = """\
  rapidetr licenses
  rapidetr licenses --json"""


def add_arguments(parser: ArgumentParser) -> None:
    """None of its own."""


def run(args: Namespace, console: Console) -> int:
    records = table()
    rows = [(r["kind"], f"{r['name']} {r.get('version', '')}".strip(), r["source"], r["license"]) for r in records]
    console.table(("kind", "name", "source", "licence"), rows)
    console.finish({"licenses": records})
    return 0
