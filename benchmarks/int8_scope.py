"""Which parts of the network bear int8? Each scope is calibrated, scored and timed; fp32 in OpenVINO stands beside it, and bf16 where the
processor has it (there what is not int8 is bf16, too).

    .venv/bin/python benchmarks/int8_scope.py --models pico,seg-pico

Calibration and scoring pictures are rendered with different seeds (rapidetr.demo), or come from --data: its train split calibrates,
--split is scored. AP is that of the artifact itself; times are from RGB array to detections, all scopes in turn in every round.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from measure import summary, timed, write

from rapidetr.data.read import read_dataset
from rapidetr.data.records import Dataset
from rapidetr.demo import write_dataset
from rapidetr.deployment.openvino import BFLOAT16, FLOAT32
from rapidetr.deployment.openvino_int8 import QUANTIZED, OpenvinoInt8
from rapidetr.deployment.technique import Order
from rapidetr.evaluation.evaluate import evaluate
from rapidetr.pixels.decode import load_picture
from rapidetr.runtime.detector import Detector
from rapidetr.runtime.host import has_bfloat16
from rapidetr.runtime.load import load
from rapidetr.runtime.lock import weights_file

SCOPES = {
    "encoder": r"__module\.encoder\b",
    "encoder, projector": QUANTIZED,
    "encoder, projector, proposals, decoder": r"__module\.(encoder|levels|proposals|values|layers|position)\b",
    "all modules": r"__module\.",
}


def pictures(dataset: Dataset, count: int) -> list[Any]:
    return [load_picture(record.path).pixels for record in dataset.images[:count]]


def run(model: str, learn: Dataset, judge: Dataset, args: argparse.Namespace) -> dict[str, Any]:
    calibration, shown = pictures(learn, args.calibrate), pictures(judge, 16)
    sides: dict[str, Detector] = {}
    with tempfile.TemporaryDirectory() as folder:
        order = Order(load(model, device="cpu", threads=args.threads), weights_file(model), args.threads, calibration)
        half = {"bfloat16": BFLOAT16} if has_bfloat16() else {}
        techniques = {"float32": FLOAT32, **half, **{name: OpenvinoInt8(scope=scope) for name, scope in SCOPES.items()}}
        for n, (name, technique) in enumerate(techniques.items()):
            technique.make(order, Path(folder) / str(n))
            sides[name] = load(Path(folder) / str(n), threads=args.threads)
        times: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(args.rounds):
            for name in [*sides][turn % len(sides) :] + [*sides][: turn % len(sides)]:
                times[name] += timed(partial(sides[name].predict, shown[turn % len(shown)]), args.calls)
        return {name: {"ms": summary(times[name]), **scores(side, judge)} for name, side in sides.items()}


def scores(detector: Detector, judge: Dataset) -> dict[str, Any]:
    found = evaluate(detector, judge)
    kinds = {"boxes": found.boxes, **({"masks": found.masks} if found.masks else {})}
    return {kind: {"AP": round(m.metrics["AP"], 4), "per_class": [round(float(ap), 4) for ap in m.ap]} for kind, m in kinds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="pico,seg-pico")
    parser.add_argument("--data", help="a dataset with a train split; else rendered scenes")
    parser.add_argument("--split", default="test")
    parser.add_argument("--calibrate", type=int, default=100, help="pictures")
    parser.add_argument("--images", type=int, default=200, help="rendered scenes to score")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--calls", type=int, default=4)
    parser.add_argument("--out")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = args.data
        if data is None:
            data = write_dataset(folder, args.calibrate, seed=11, size_hw=(288, 288))
            write_dataset(folder, args.images, seed=2026, split=args.split, size_hw=(288, 288))
        learn, judge = read_dataset(data, "train"), read_dataset(data, args.split)
        results = {model: run(model, learn, judge, args) for model in args.models.split(",")}
    told = {"data": Path(args.data).name if args.data else "rendered scenes of 288x288, seeds 11 and 2026", "split": args.split}
    counts = {"calibration_pictures": min(args.calibrate, len(learn.images)), "scored_pictures": len(judge.images)}
    write("int8_scope", {**told, **counts, "threads": args.threads, "models": results}, args.out)


if __name__ == "__main__":
    main()
