"""Official `predict` and ours under the harness of `rapidetr bench`: the same pictures, clock, rounds and sensors, in turn.

    .venv/bin/python benchmarks/bench_vs_official.py --official OFFICIAL/bin/python --photos FOLDER

OFFICIAL is an environment with `rfdetr` 1.11 on a CPU build of torch, and with psutil. Weights are filled by the parity rule, as in
predict_vs_official.py. Blocks of rounds of both sides run in turn; each block is one row of the side's report, with its noise, and
ratios are those of all rounds, paired by block. The official package has no stages: its whole predict counts as "run".
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from measure import HERE, Worker, serve, write
from predict_vs_official import OFFICIAL, make_checkpoint

SUFFIXES = {".jpg", ".jpeg", ".png"}


def official_detector(model: str, file: str) -> Any:
    """The official model with what the harness asks of a detector."""
    import warnings
    from types import SimpleNamespace

    warnings.simplefilter("ignore")
    import numpy as np
    import rfdetr

    from rapidetr.core.config import variant

    class Found:
        def __init__(self, detections: Any) -> None:
            self.boxes_xyxy_px, self.scores, self.source = np.asarray(detections.xyxy), np.asarray(detections.confidence), ""

    class Official:
        def __init__(self) -> None:
            self.inside = getattr(rfdetr, OFFICIAL[model])(pretrain_weights=file, device="cpu")
            self.config = variant(model)
            self.size_hw = self.config.size_hw
            self.engine = SimpleNamespace(name="rfdetr", precision="float32", device="cpu")

        def predict(self, sources: list[str], threshold: float, *, batch_size: int, clock: Any) -> list[Found]:
            with clock.stage("run"):
                found = self.inside.predict(sources, threshold=threshold)
            return [Found(one) for one in (found if isinstance(found, list) else [found])]

    return Official()


class Side:
    def __init__(self, which: str, model: str, file: str, photos: str, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        if which == "ours":
            import rapidetr

            self.detector: Any = rapidetr.load(file, model=model, device="cpu", threads=threads)
        else:
            sys.path.insert(0, str(HERE.parent / "src"))
            self.detector = official_detector(model, file)
        self.which, self.threads = which, threads
        self.paths = sorted(str(p) for p in Path(photos).iterdir() if p.suffix.lower() in SUFFIXES)[:32]

    def handle(self, rounds: int) -> dict[str, Any]:
        from rapidetr.bench.loads import LoadShape
        from rapidetr.bench.runner import Plan, measure_row

        plan = Plan(rounds=rounds, seconds=600.0, forward_calls=0)
        return measure_row(self.detector, self.which, self.paths, LoadShape(threads=self.threads), plan).to_dict()


def compare(rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Ratios ours / official at p50 and p95 with their intervals; which blocks were noisy."""
    import numpy as np

    from rapidetr.core.statistics import ratio_interval, verdict

    ours, official = (np.concatenate([row["totals_ms"] for row in rows[side]]) for side in ("ours", "official"))
    found: dict[str, Any] = {"unusable_blocks": {side: [r["reasons"] for r in rows[side] if not r["usable"]] for side in rows}}
    for p in (50, 95):
        ratio, interval = ratio_interval(ours, official, p)
        found[f"p{p}"] = {
            "ours_ms": round(float(np.percentile(ours, p)), 2), "official_ms": round(float(np.percentile(official, p)), 2),
            "ratio": round(ratio, 3), "interval": [round(v, 3) for v in interval], "verdict": verdict(interval),
        }  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", required=True, help="python of the environment with rfdetr")
    parser.add_argument("--photos", required=True, help="a folder of pictures")
    parser.add_argument("--models", default="nano,seg-nano")
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=8, help="of 3 calls, in each block")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--out")
    args = parser.parse_args()
    if args.worker:
        serve(Side(*args.worker, args.threads).handle)
        return
    models: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for model in args.models.split(","):
            file = make_checkpoint(model, Path(folder))
            tail = [__file__, "--official", "-", "--photos", "-", "--threads", str(args.threads), "--worker"]
            workers = {
                side: Worker([python, "-W", "ignore", *tail, side, model, str(file), args.photos])
                for side, python in (("ours", sys.executable), ("official", args.official))
            }
            rows: dict[str, list[dict[str, Any]]] = {side: [] for side in workers}
            for block in range(args.blocks):
                for side in sorted(workers, reverse=bool(block % 2)):
                    rows[side].append(workers[side].ask(rounds=args.rounds))
            for worker in workers.values():
                worker.close()
            models[model] = {"comparison": compare(rows), "rows": rows}
            print(model, models[model]["comparison"], file=sys.stderr)
    write("bench_vs_official", {"threads": args.threads, "pictures": 32, "models": models}, args.out)


if __name__ == "__main__":
    main()
