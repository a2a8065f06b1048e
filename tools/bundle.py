"""Pack a finished run as a model that ships in the package: 16-bit weights and the records of all runs that led to it.

    python tools/bundle.py pico 3 runs/pico-160 runs/pico-224 runs/pico-288

The last run gives the weights, of which so many query groups are kept (more are a better start for fine-tuning, and a larger file).
Prints the sha256 for the table in checkpoints/weights.py.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rapidetr.checkpoints.file import open_checkpoint, save_checkpoint

WEIGHTS = Path(__file__).resolve().parents[1] / "src" / "rapidetr" / "weights"


def record_of(run: Path) -> dict[str, Any]:
    """record.json; of a run that was stopped, its recipe and history."""
    if (run / "record.json").exists():
        return json.loads((run / "record.json").read_text("utf-8"))
    history = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    plan = json.loads((run / "recipe.json").read_text("utf-8"))
    return {**plan, "finished": False, "epochs": len(history), "hours": round(history[-1]["seconds"] / 3600, 4), "history": history}


def main(name: str, groups: str, *runs: str) -> None:
    records = [record_of(Path(run)) for run in runs]
    checkpoint = open_checkpoint(Path(runs[-1]) / "best.safetensors")
    config = replace(checkpoint.config, groups=int(groups))
    fitted = replace(checkpoint, license="Apache-2.0").adapted(config, checkpoint.labels)
    provenance = {"start": "random weights", "data": "rendered world of rapidetr.demo", "record": f"{name}.json"}
    path = save_checkpoint(replace(fitted, provenance=provenance), WEIGHTS / f"{name}.safetensors", dtype=torch.float16)
    (WEIGHTS / f"{name}.json").write_text(json.dumps({"model": name, "runs": records}, indent=1) + "\n", "utf-8")
    print(path, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())


if __name__ == "__main__":
    main(*sys.argv[1:])
