"""What goes to which stream."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TextIO


@dataclass(frozen=True)
class Console:
    """Text for people on stdout, errors on stderr; with `json`, stdout carries one JSON document and nothing else."""

    json: bool
    quiet: bool

    @property
    def stream(self) -> TextIO:
        return sys.stderr if self.json else sys.stdout

    def say(self, text: str) -> None:
        if not self.quiet:
            _write(text, self.stream)

    def table(self, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Columns as wide as their longest entry."""
        widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
        for row in (heads, *rows):
            self.say("  ".join(entry.ljust(width) for entry, width in zip(row, widths, strict=True)).rstrip())

    def error(self, message: str) -> None:
        """One line, also under --quiet."""
        _write(f"rapidetr: error: {' '.join(message.split())}", sys.stderr)

    def finish(self, record: dict[str, Any]) -> None:
        """The JSON document; nothing without `json`."""
        if self.json:
            sys.stdout.write(json.dumps(record) + "\n")


def _write(text: str, stream: TextIO) -> None:
    encoding = stream.encoding or "utf-8"  # names of files and classes may hold what a terminal cannot show
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
