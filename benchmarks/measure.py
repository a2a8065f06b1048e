"""What every benchmark shares: percentiles, where and on what it ran, the JSON beside it, and workers in two interpreters."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import subprocess
import sys
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
        flags = sorted(found & {"avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8", "fma"})
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
