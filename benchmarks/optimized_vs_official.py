"""What `optimize` adopts against the official package: predict() as it is, and its best inference(...) setting; interleaved.

    .venv/bin/python benchmarks/optimized_vs_official.py --official OFFICIAL/bin/python --artifact nano=registry/current
    .venv/bin/python benchmarks/optimized_vs_official.py --official OFFICIAL/bin/python --models nano --technique torch-folded

OFFICIAL is an environment with `rfdetr` 1.11 on a CPU build of torch. Weights are those of the parity rule (speed does not depend on
their values), or with --checkpoint MODEL=FILE an official .pth, such as a fine-tuned one that `rapidetr convert` wrote; ours is the
artifact that --technique makes of them, or with --artifact MODEL=FOLDER one that is there, made from the same weights. Defaults of
--technique and --best are bf16 where the processor multiplies in it; elsewhere fp32, which is faster there.

Each round times every side in turn, from a PIL picture of 480 x 640 to detections, batch 1. Outputs must be finite. They are compared
with those of the official default, and the part that agrees is reported with the differences. An artifact that resizes with the
antialiased filter is compared with the official package on a picture resized so beforehand, too. Under the same filter an fp32 artifact
must agree in 0.95 of the detections: of random weights queries whose scores tie exchange places under rounding. Of other precisions, and
of the official best setting, agreement on random weights says little; the gate judges.
Then two processes of each side with one thread each run at once (images per second), and fresh processes start in turn (seconds to the
first detections).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from measure import Worker, busy_threshold, interleaved, official_parser, serve, summary, write
from predict_vs_official import MODELS, Side, make_checkpoint, peak_mb

SIDES = ("ours", "official", "official best")
LEAST = 0.95  # of the detections of an fp32 artifact agree: a tie or two of 20 may change places, a wrong weight or pixel moves most


class Optimized(Side):
    """One package in one process; for ours `file` is an artifact, for "official best" the setting is `best`."""

    def __init__(self, which: str, model: str, file: str, threads: int, best: str) -> None:
        self.best = best
        super().__init__(which, model, file, threads)

    def ours(self, model: str, file: str, threads: int) -> Any:
        import rapidetr

        return rapidetr.load(file, threads=threads)

    def official(self, model: str, file: str, threads: int) -> Any:
        detector = super().official(model, file, threads)
        if self.which == "official best":
            import torch

            backend, dtype = self.best.split(":")
            detector.inference(compile=True, batch_size=1, dtype=getattr(torch, dtype), compile_backend=backend)
        return detector

    def facts(self) -> dict[str, Any]:
        """Of ours also the filter, and what the engine is fed with."""
        if self.which != "ours":
            return {"peak_mb": peak_mb()}
        import numpy as np

        engine, feed = self.detector.engine, self.detector.preprocessing
        pixels = engine.prepare([np.asarray(self.image)], feed, feed.predict_filter, None).pixels
        told = {"filter": feed.predict_filter, "pixels": f"{pixels.dtype} {list(pixels.shape)}", "size_hw": list(self.detector.size_hw)}
        return {"peak_mb": peak_mb(), "engine": engine.name, "precision": engine.precision, **told}


def make_artifact(model: str, checkpoint: Path, technique: str, folder: Path, threads: int) -> Path:
    """The artifact of one technique, not judged: the benchmark looks at its outputs itself. int8 is calibrated on rendered scenes."""
    import rapidetr
    from rapidetr.deployment.optimize import rendered_scenes
    from rapidetr.deployment.technique import Order
    from rapidetr.deployment.technique import technique as find

    pictures = rendered_scenes() if "int8" in technique else ()
    order = Order(rapidetr.load(checkpoint, model=model, device="cpu", threads=threads), checkpoint, threads, pictures)
    maker = find(technique)
    if why_not := maker.fits(order):
        raise SystemExit(f"{technique} is not tried here: {why_not}")
    return maker.make(order, folder / f"{model}-{technique}").path


def agreements(sides: dict[str, Worker], facts: dict[str, Any], threshold: float) -> dict[str, Any]:
    """With the official default; of an artifact with another filter than that one's also with it under the artifact's filter."""
    said = {which: side.ask(do="outputs", threshold=threshold) for which, side in sides.items()}  # asserts that all is finite
    found = {which: agree(said[which], said["official"]) for which in ("ours", "official best")}
    if facts["filter"] == "bilinear-antialias":
        resized = sides["official"].ask(do="outputs", threshold=threshold, size_hw=facts["size_hw"])
        found["ours, same filter"] = agree(said["ours"], resized)
    return found


def agree(found: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """How many detections of either side have a partner of the same class within 0.9 of box overlap, and the differences of those."""
    import numpy as np

    shifts, scores, free = [], [], set(range(len(wanted["ids"])))
    for box, score, kind in zip(found["boxes"], found["scores"], found["ids"], strict=True):
        near = [(overlap(box, wanted["boxes"][k]), k) for k in free if wanted["ids"][k] == kind]
        best, k = max(near, default=(0.0, -1))
        if best >= 0.9:
            free.discard(k)
            shifts.append(float(np.abs(np.subtract(box, wanted["boxes"][k])).max()))
            scores.append(abs(score - wanted["scores"][k]))
    total = len(found["ids"]) + len(wanted["ids"])
    return {
        "detections": [len(found["ids"]), len(wanted["ids"])],
        "agreeing": round(2 * len(shifts) / total, 4) if total else 1.0,
        "box_difference_px": max(shifts, default=None),
        "score_difference": max(scores, default=None),
        "mask_pixels": [sum(found["mask_pixels"]), sum(wanted["mask_pixels"])],
    }


def overlap(a: list[float], b: list[float]) -> float:
    """Intersection over union of two boxes; 1 for those that are the same within half a pixel, whose area may be 0."""
    if max(abs(x - y) for x, y in zip(a, b, strict=True)) <= 0.5:
        return 1.0
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inside = max(w, 0.0) * max(h, 0.0)
    return inside / max((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inside, 1e-9)


def worker(which: str, model: str, file: Path, args: argparse.Namespace, threads: int) -> Worker:
    python = sys.executable if which == "ours" else args.official
    command = [python, "-W", "ignore", __file__, "--threads", str(threads), "--best", args.best, "--worker", which, model, str(file)]
    return Worker(command, {"RAPIDETR_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)})


def start(which: str, model: str, file: Path, args: argparse.Namespace) -> float:
    """Seconds from starting a process to its first detections."""
    began = time.perf_counter()
    side = worker(which, model, file, args, args.threads)
    side.ask(do="time")  # answered after the first detections; one call more, which is taken off
    spent = time.perf_counter() - began
    last = side.ask(do="time")["ms"][0] / 1000
    side.close()
    return spent - last


def streams(which: str, model: str, file: Path, args: argparse.Namespace, threshold: float) -> float:
    """Images per second of two processes of one thread each, at once; those that the slower one leaves alone do not count."""
    sides = [worker(which, model, file, args, 1) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        for side in sides:
            side.ask(do="time", n=3, threshold=threshold)
        found = list(pool.map(lambda side: side.ask(do="time", n=args.calls * 4, threshold=threshold)["ms"], sides))
    for side in sides:
        side.close()
    together = min(sum(times) for times in found)
    return sum(within(times, together) for times in found) / together * 1000


def within(times: list[float], most: float) -> int:
    """How many of the calls ended within `most` milliseconds."""
    spent, count = 0.0, 0
    for one in times:
        spent += one
        count += spent <= most + 1e-9
    return count


def run(model: str, checkpoint: Path, artifact: Path, args: argparse.Namespace) -> dict[str, Any]:
    files = {which: artifact if which == "ours" else checkpoint for which in SIDES}
    sides = {which: worker(which, model, files[which], args, args.threads) for which in SIDES}
    threshold = busy_threshold(sides["official"])
    facts = {which: side.ask(do="facts") for which, side in sides.items()}
    equal = agreements(sides, facts["ours"], threshold)
    same = equal.get("ours, same filter", equal["ours"])
    if facts["ours"]["precision"] == "float32" and same["agreeing"] < LEAST:
        raise SystemExit(f"{model}: less than {LEAST} of the detections of a float32 artifact agree with the official ones: {same}")
    times = interleaved(sides, args.rounds, args.calls, threshold)
    for side in sides.values():
        side.close()
    ms = {which: summary(t) for which, t in times.items()}
    cold: dict[str, list[float]] = {which: [] for which in SIDES}
    for _ in range(args.starts):
        for which in SIDES:
            cold[which].append(round(start(which, model, files[which], args), 2))
    rate = {which: round(streams(which, model, files[which], args, threshold), 2) for which in SIDES} if args.streams else {}
    ratio = {q: {which: round(ms[which][q] / ms["ours"][q], 3) for which in SIDES[1:]} for q in ("p50", "p95")}
    print(f"{model}: {ms['ours']['p50']} ms, times as fast as official: {ratio['p50']}", file=sys.stderr)
    return {
        "ms": ms,
        "times_as_fast": ratio,
        "agreement_with_official_default": equal,
        "facts": facts,
        "cold_start_s": {which: median(found) for which, found in cold.items() if found},
        "two_streams_images_per_second": rate,
        "artifact": json.loads((artifact / "manifest.json").read_text())["parameters"],
        "all_ms": {which: [round(x, 1) for x in t] for which, t in times.items()},
    }


def main() -> None:
    parser = official_parser(__doc__)
    parser.add_argument("--technique", help="makes the artifact where none is given (default: openvino-bfloat16, or -float32)")
    parser.add_argument("--artifact", action="append", default=[], metavar="MODEL=FOLDER", help="an artifact, or registry/current")
    parser.add_argument("--checkpoint", action="append", default=[], metavar="MODEL=FILE", help="an official .pth that both load")
    parser.add_argument("--best", help="the official compile_backend:dtype (default: torchscript:bfloat16, or :float32)")
    parser.add_argument("--starts", type=int, default=3, help="fresh processes of each side; 0 leaves them out")
    parser.add_argument("--streams", action=argparse.BooleanOptionalAction, default=True, help="two streams (default: yes)")
    args = parser.parse_args()
    if args.worker:
        which, model, file = args.worker
        serve(Optimized(which, model, file, args.threads, args.best).handle)
        return
    from rapidetr.runtime.host import has_bfloat16

    fast = "bfloat16" if has_bfloat16() else "float32"
    args.technique, args.best = args.technique or f"openvino-{fast}", args.best or f"torchscript:{fast}"
    artifacts, checkpoints = (dict(pair.split("=", 1) for pair in pairs) for pairs in (args.artifact, args.checkpoint))
    results = {}
    with tempfile.TemporaryDirectory() as aside:
        for model in [name for name in args.models.split(",") if name in MODELS]:
            folder = Path(aside)
            checkpoint = Path(checkpoints[model]) if model in checkpoints else make_checkpoint(model, folder)
            artifact = found_in(artifacts[model]) if model in artifacts else None
            artifact = artifact or make_artifact(model, checkpoint, args.technique, folder, args.threads)
            results[model] = run(model, checkpoint, artifact, args)
    record = {"threads": args.threads, "batch": 1, "input": "PIL 480x640", "official_best": args.best, "models": results}
    write("optimized_vs_official", record, args.out)


def found_in(source: str) -> Path:
    """The folder of an artifact, or of the one that a registry's pointer names."""
    from rapidetr.runtime.places import find_artifact

    folder = find_artifact(source)
    if folder is None:
        raise SystemExit(f"{source}: no artifact and no registry")
    return Path(os.path.abspath(folder))


if __name__ == "__main__":
    main()
