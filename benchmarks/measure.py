"""What every benchmark shares: percentiles, where and on what it ran, the JSON beside it, and workers in two interpreters."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def percentile(values: list[float], q: float) -> float:
    """Linear interpolation between the order statistics."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * q / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def summary(values: list[float]) -> dict[str, float]:
    return {"p50": round(percentile(values, 50), 2), "p95": round(percentile(values, 95), 2), "n": len(values)}


def hardware() -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    flags: list[str] = []
    if info.exists():
        text = info.read_text()
        cpu = (re.search(r"model name\s*:\s*(.+)", text) or ["", cpu])[1]
        found = set((re.search(r"flags\s*:\s*(.+)", text) or ["", ""])[1].split())
        flags = sorted(found & {"avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8", "fma"})
    load = os.getloadavg() if hasattr(os, "getloadavg") else ()
    return {"cpu": cpu, "cores": os.cpu_count(), "flags": flags, "system": platform.system(), "load_before": [round(x, 2) for x in load]}


def short_name(record: dict[str, Any]) -> str:
    """A name for files: amd-epyc-2c."""
    return re.sub(r"[^a-z0-9]+", "-", record["cpu"].lower()).strip("-") + f"-{record['cores']}c"


def commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty", "--exclude=*"], capture_output=True, text=True, cwd=HERE)
    return done.stdout.strip() or "unknown"


def write(what: str, record: dict[str, Any], out: str | None = None) -> Path:
    """benchmarks/<what>_<hardware>_<date>.json with the circumstances added."""
    machine = hardware()
    today = datetime.date.today().isoformat()
    path = Path(out) if out else HERE / f"{what}_{short_name(machine)}_{today}.json"
    whole = {"what": what, "date": today, "commit": commit(), "hardware": machine, "python": platform.python_version(), **record}
    path.write_text(json.dumps(whole, indent=1) + "\n")
    print(path, file=sys.stderr)
    return path


class Worker:
    """A process that answers one JSON line for each JSON line it is sent; used to interleave two interpreters."""

    def __init__(self, command: list[str], env: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={**os.environ, **(env or {})}
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith('{"answer"'):
                answer: dict[str, Any] = json.loads(line)["answer"]
                return answer
        raise RuntimeError(f"worker ended with status {self.process.wait()}: {self.process.args}")

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(300)


def serve(handle: Any) -> None:
    """The worker's side of `Worker`."""
    for line in sys.stdin:
        print(json.dumps({"answer": handle(**json.loads(line))}), flush=True)


def timed(call: Callable[[], object], n: int) -> list[float]:
    """Milliseconds of each of `n` calls."""
    times = []
    for _ in range(n):
        began = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - began))
    return times


def interleaved(sides: Mapping[str, Worker], rounds: int, calls: int, threshold: float) -> dict[str, list[float]]:
    """Milliseconds of every call of each side: three calls to warm up, then rounds, each begun by another side."""
    names, times = list(sides), {name: list[float]() for name in sides}
    for side in sides.values():
        side.ask(do="time", n=3, threshold=threshold)
    for i in range(rounds):
        for k in range(len(names)):
            name = names[(i + k) % len(names)]
            times[name] += sides[name].ask(do="time", n=calls, threshold=threshold)["ms"]
    return times


def busy_threshold(side: Worker) -> float:
    """Between the scores of ranks 20 and 21: as many detections (and masks) as a busy photo has."""
    scores = side.ask(do="outputs", threshold=0.0)["scores"]
    return (scores[19] + scores[20]) / 2


def official_parser(description: str | None) -> argparse.ArgumentParser:
    """Options of the benchmarks that time models of two packages in turn."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", help="python of an environment with rfdetr")
    parser.add_argument("--models", default="nano,medium,seg-nano")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--calls", type=int, default=8, help="calls of each side in a round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out")
    parser.add_argument("--worker", nargs=3, metavar=("SIDE", "MODEL", "FILE"), help=argparse.SUPPRESS)
    return parser
