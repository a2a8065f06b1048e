"""Fenced blocks of the pages, and how each is run."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

from rapidetr.cli.main import main
from rapidetr.deployment.registry import Registry

RUN = ("python", "sh")
PROSE = ("text", "json", "yaml", "toml", "ini", "dockerfile", "nginx")  # shown, not run: output, diagrams, files of other programs
# <!-- not run: WHY --> or <!-- may end with 1: WHY --> on the line before the block or on the line after it
MARK = r"<!-- (not run|may end with 1): ([^\n]+?) -->"
FENCE = re.compile(rf"(?:^{MARK}\n)?^```([^\n]*)\n(.*?)^```$(?:\n{MARK}$)?", re.M | re.S)
OPERATORS = "|&;<>"
PORT = "8080"  # of `rapidetr serve` in the pages; a free one takes its place
START_S = 120  # a server that is not ready by then does not start


@dataclass(frozen=True)
class Block:
    """`mark` is "", "not run" or "may end with 1"; `line` is where its code begins."""

    page: str
    line: int
    language: str
    code: str
    mark: str
    reason: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    found = FENCE.finditer(text)
    return [
        Block(page.name, text.count("\n", 0, m.start(4)) + 1, m[3].strip(), m[4], m[1] or m[5] or "", m[2] or m[6] or "") for m in found
    ]


def logical_lines(code: str) -> list[str]:
    """Commands: lines that end in a backslash are joined with the next, empty ones and comments left out."""
    lines = re.sub(r"\\\n\s*", "", code).splitlines()
    return [line for line in lines if shlex.split(line, comments=True)]


@dataclass
class Reader:
    """Does what a page says, block after block, in `folder`; names of Python live on from one block to the next.

    `rapidetr serve` goes on in a process of its own until the next one starts or the page ends.
    """

    folder: Path
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "page"})
    server: subprocess.Popen[bytes] | None = None
    port: str = field(default_factory=lambda: free_port())

    def run(self, block: Block) -> None:
        code = block.code.replace(PORT, self.port)
        if block.language == "python":
            exec(compile(code, block.place, "exec"), self.names)
            return
        allowed = (0, 1) if block.mark == "may end with 1" else (0,)
        for line in logical_lines(code):
            status, said = self.command(line)
            assert status in allowed, f"{block.place}: `{line}` ended with {status}{said}"

    def command(self, line: str) -> tuple[int, str]:
        """Exit status, and what a program said. `rapidetr` runs in this process, on Ray in its own; `pip install` is only looked at."""
        words = shlex.split(line, comments=True)
        if not is_run(line):
            return check_extras(words), ""
        if words[:2] == ["rapidetr", "serve"]:
            return self.serve([word for word in words[2:] if word != "&"]), ""
        on_ray = words[:2] == ["rapidetr", "batch"] and "local" not in words  # whose processes outlive their handles
        if words[0] == "rapidetr" and not needs_shell(line) and not on_ray:
            return self.verb(words[1:]), ""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(["bash", "-c", line], cwd=self.folder, capture_output=True, text=True, env={**os.environ, "PATH": path})
        return done.returncode, f"\n{done.stderr}"

    def serve(self, words: list[str]) -> int:
        """0 as soon as the server answers that it is ready. A program of its own: it listens for signals, and goes on beside the page."""
        self.stop()
        options = [] if "--port" in words else ["--port", self.port]
        self.server = subprocess.Popen([sys.executable, "-m", "rapidetr", "serve", *words, *options], cwd=self.folder)
        end = time.monotonic() + START_S
        while time.monotonic() < end and self.server.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5):
                    return 0
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        return self.server.poll() or 124

    def stop(self) -> None:
        if self.server is not None:
            self.server.terminate()
            self.server.wait(60)
            self.server = None

    def verb(self, words: list[str]) -> int:
        """ID stands for the artifact that was added last to the registry that the command names."""
        words = [newest(self.folder / words[1]) if word == "ID" else word for word in words]
        try:
            return main(words)
        except SystemExit as end:  # argparse ends so
            return int(end.code or 0)


def needs_shell(line: str) -> bool:
    """Whether operators or variables of the shell stand outside quotes."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=OPERATORS)
    lexer.whitespace_split = True
    return any("$" in word or set(word) <= set(OPERATORS) for word in lexer)


def free_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


def newest(registry: Path) -> str:
    return next(str(entry.after) for entry in reversed(Registry(registry).history()) if entry.action in ("baseline", "add"))


def is_run(line: str) -> bool:
    """Whether a command does anything here: installing is only looked at."""
    return shlex.split(line, comments=True)[:2] != ["pip", "install"]


def check_extras(words: list[str]) -> int:
    """0 where every extra that is asked for exists; nothing is installed."""
    there = set(metadata("rapidetr").get_all("Provides-Extra") or [])
    asked = {extra for word in words for group in re.findall(r"rapidetr\[([\w,-]+)\]", word) for extra in group.split(",")}
    assert asked <= there, f"{shlex.join(words)}: there is no extra {', '.join(asked - there)}; there are {', '.join(sorted(there))}"
    return 0
