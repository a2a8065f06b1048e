"""How long importing and helping take, each in fresh processes.

.venv/bin/python benchmarks/startup.py
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from measure import percentile, write

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "python -c 'import rapidetr'": [sys.executable, "-c", "import rapidetr"],
    "rapidetr --help": [str(Path(sys.executable).parent / "rapidetr"), "--help"],
    "rapidetr predict --help": [str(Path(sys.executable).parent / "rapidetr"), "predict", "--help"],
    "rapidetr models": [str(Path(sys.executable).parent / "rapidetr"), "models"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out")
    args = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(args.rounds):
        for name, command in COMMANDS.items():
            began = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            times[name].append(time.perf_counter() - began)
    seconds = {n: {"p50": round(percentile(t, 50), 3), "p95": round(percentile(t, 95), 3), "n": len(t)} for n, t in times.items()}
    write("startup", {"seconds": seconds}, args.out)


if __name__ == "__main__":
    main()
