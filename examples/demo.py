"""`make demo`: detect, measure and fine-tune offline, on the bundled model and its rendered world, in under three minutes.

python examples/demo.py [--out demo-out] [--scenes 200] [--epochs 5]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import rapidetr
from rapidetr.core.clock import STAGES, StageClock
from rapidetr.data import read_dataset
from rapidetr.demo import VARIATION, write_dataset
from rapidetr.evaluation import evaluate

HELD_OUT, NEW_WORLD = 2026, 7  # seeds; the bundled model was trained on seed 0
SIZE = (288, 288)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo-out"))
    parser.add_argument("--scenes", type=int, default=200, help="held-out scenes to detect in")
    parser.add_argument("--epochs", type=int, default=5, help="of the fine-tuning")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    print("This world is rendered: simple things that the bundled pico was trained on. Real photos want the official weights:")
    print("  rapidetr predict photo.jpg --model nano\n")
    record = {"detect": detect(args.out, args.scenes), "fine_tune": fine_tune(args.out, args.epochs)}
    (args.out / "demo.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"\nall figures: {args.out / 'demo.json'}")
    return 0


def detect(out: Path, scenes: int) -> dict[str, Any]:
    """Held-out scenes: one annotated picture, AP, and the time of every stage."""
    print(f"1. Detect: {scenes} held-out scenes")
    dataset = read_dataset(write_dataset(out / "held-out", scenes, HELD_OUT, split="test", size_hw=SIZE), "test")
    detector = rapidetr.load("pico")
    first = dataset.images[0].path
    found = detector.predict(first, threshold=0.4)[0]
    found.draw(first).save(out / "detections.png")
    print(f"   {Path(first).name}: {', '.join(f'{n} {s:.2f}' for n, s in zip(found.class_names, found.scores, strict=True))}")
    print(f"   annotated picture: {out / 'detections.png'}")
    metrics = evaluate(detector, dataset).boxes.metrics
    print(f"   against the truth: AP50:95 {metrics['AP']:.3f}, AP50 {metrics['AP50']:.3f}")
    return {
        "AP": metrics["AP"],
        "AP50": metrics["AP50"],
        "stages_ms": time_stages(detector, [Path(image.path) for image in dataset.images]),
    }


def time_stages(detector: rapidetr.Detector, paths: list[Path]) -> dict[str, dict[str, float]]:
    """p50 and p95 in ms of each stage of `predict`, one picture at a time; the first five warm up."""
    clocks = []
    for path in paths:
        clocks.append(StageClock())
        with clocks[-1].stage("total"):
            detector.predict(path, clock=clocks[-1])
    times: dict[str, dict[str, float]] = {}
    for stage in [s for s in (*STAGES, "total") if s in clocks[-1].seconds]:
        p50, p95 = np.percentile([clock.milliseconds().get(stage, 0.0) for clock in clocks[5:]], [50, 95])
        times[stage] = {"p50": round(float(p50), 2), "p95": round(float(p95), 2)}
        print(f"   {stage:9} p50 {p50:7.2f} ms   p95 {p95:7.2f} ms")
    return times


def fine_tune(out: Path, epochs: int) -> dict[str, Any]:
    """A minute on a world with other colors, other grounds and a new class: AP before and after."""
    print("\n2. Fine-tune: other colors, other grounds, and a class that pico has never seen (leaf)")
    data = write_dataset(out / "new-world", 180, NEW_WORLD, split={"train": 0.67, "valid": 0.33}, size_hw=SIZE, variation=VARIATION)
    run = rapidetr.train(
        data, model="pico", out=out / "run", fresh=True, epochs=epochs, evaluate_every=epochs, batch_size=8, groups=3, rates="uniform",
        lr=3e-4, schedule="cosine", warmup_epochs=0.5, ema_decay=0.95, ema_warmup="ratio", watch="ema", augment="render",
        multi_scale=False,
    )  # fmt: skip
    before, after = run.record["baseline"], run.record["best"]
    for name in ("AP", "AP50"):
        print(f"   {name:4} before {before[name]:.3f}, after {after[name]:.3f}: gain {after[name] - before[name]:+.3f}")
    print(f"   the better checkpoint: {run.folder / 'best.safetensors'}; use it with: rapidetr predict IMAGE --model {run.folder}")
    return {name: {"before": before[name], "after": after[name]} for name in ("AP", "AP50")} | {"hours": run.record["hours"]}


if __name__ == "__main__":
    raise SystemExit(main())
