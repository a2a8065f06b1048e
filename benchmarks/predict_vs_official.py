"""End-to-end predict, ours against the official package: same checkpoint file, same picture, interleaved rounds.

    .venv/bin/python benchmarks/predict_vs_official.py --official OFFICIAL/bin/python

OFFICIAL is an environment with `rfdetr` 1.11 on a CPU build of torch. Weights are filled by the parity rule of tests/golden
(speed does not depend on their values) and written as one official .pth that both load. Each round times both sides in turn,
from a PIL picture to detections; outputs are compared and must be finite and equal.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from measure import HERE, Worker, serve, summary, write

MODELS = {"nano": "nano_384", "medium": "medium_576", "seg-nano": "seg-nano_312"}
OFFICIAL = {"nano": "RFDETRNano", "medium": "RFDETRMedium", "seg-nano": "RFDETRSegNano"}


def picture():
    """A PIL picture of 480 x 640, the same in every process: blocks of color and noise."""
    import numpy as np
    from PIL import Image

    rng = np.random.Generator(np.random.PCG64(7))
    blocks = rng.integers(0, 256, (15, 20, 3)).repeat(32, 0).repeat(32, 1)
    return Image.fromarray((blocks * 0.8 + rng.integers(0, 52, (480, 640, 3))).clip(0, 255).astype(np.uint8))


def make_checkpoint(model: str, folder: Path) -> Path:
    sys.path.insert(0, str(HERE.parent / "tests" / "golden"))
    import cases

    from rapidetr.checkpoints.file import Checkpoint, save_official
    from rapidetr.core.labels import LabelSpace
    from rapidetr.core.preprocessing import Preprocessing

    network = cases.network(MODELS[model])
    checkpoint = Checkpoint(network.state_dict(), network.config, LabelSpace.coco(), Preprocessing.official(), "Apache-2.0")
    return save_official(checkpoint, folder / f"{model}.pth")


class Side:
    """One package in one process."""

    def __init__(self, which: str, model: str, file: str, threads: int) -> None:
        began = time.perf_counter()
        if which == "ours":
            import rapidetr

            self.detector = rapidetr.load(file, model=model, device="cpu", threads=threads)
            self.call = lambda image, t: self.detector.predict(image, t, include_unnamed=True)[0]
        else:
            import warnings

            warnings.simplefilter("ignore")
            import rfdetr
            import torch

            torch.set_num_threads(threads)
            self.detector = getattr(rfdetr, OFFICIAL[model])(pretrain_weights=file, device="cpu")
            self.call = lambda image, t: self.detector.predict(image, threshold=t)
        self.image = picture()
        self.call(self.image, 0.5)
        self.cold_s = time.perf_counter() - began

    def handle(self, do: str, n: int = 1, threshold: float = 0.5) -> dict:
        if do == "time":
            times = []
            for _ in range(n):
                began = time.perf_counter()
                self.call(self.image, threshold)
                times.append(1000 * (time.perf_counter() - began))
            return {"ms": times}
        if do == "outputs":
            return outputs(self.call(self.image, threshold))
        import resource

        return {
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "lines": lines_loaded("rapidetr" if "rapidetr" in sys.modules else "rfdetr"),
            "load_and_first_s": self.cold_s,
        }


def outputs(found) -> dict:
    import numpy as np

    official = hasattr(found, "xyxy")
    boxes = found.xyxy if official else found.boxes_xyxy_px
    scores = found.confidence if official else found.scores
    ids = found.class_id if official else found.head_rows
    masks = found.mask if official else found.masks
    pixels = [int(np.asarray(m).sum()) for m in masks] if masks is not None else []
    assert np.isfinite(boxes).all()
    assert np.isfinite(scores).all()
    record = {"boxes": np.asarray(boxes, float).tolist(), "scores": np.asarray(scores, float).tolist(), "ids": np.asarray(ids).tolist()}
    return {**record, "mask_pixels": pixels}


def lines_loaded(package: str) -> int:
    files = {getattr(m, "__file__", None) for name, m in list(sys.modules.items()) if name == package or name.startswith(package + ".")}
    return sum(len(Path(f).read_text(encoding="utf-8").splitlines()) for f in files if f and f.endswith(".py"))


def compare(ours: dict, official: dict) -> dict:
    import numpy as np

    if ours["ids"] != official["ids"]:
        raise SystemExit(f"outputs differ: {len(ours['ids'])} and {len(official['ids'])} detections, or other classes")
    far = {
        "detections": len(ours["ids"]),
        "score_difference": float(np.abs(np.subtract(ours["scores"], official["scores"])).max(initial=0)),
        "box_difference_px": float(np.abs(np.subtract(ours["boxes"], official["boxes"])).max(initial=0)),
        "mask_pixels": [sum(ours["mask_pixels"]), sum(official["mask_pixels"])],
        "sha256_of_rounded_outputs": hashlib.sha256(
            json.dumps([ours["ids"], np.round(ours["scores"], 3).tolist(), np.round(ours["boxes"], 1).tolist()]).encode()
        ).hexdigest(),
    }
    if far["score_difference"] > 1e-4 or far["box_difference_px"] > 0.05:
        raise SystemExit(f"outputs differ: {far}")
    return far


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", help="python of an environment with rfdetr")
    parser.add_argument("--models", default="nano,medium,seg-nano")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--calls", type=int, default=8, help="calls of each side in a round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out")
    parser.add_argument("--worker", nargs=3, metavar=("SIDE", "MODEL", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        which, model, file = args.worker
        serve(Side(which, model, file, args.threads).handle)
        return
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for model in args.models.split(","):
            results[model] = run(model, make_checkpoint(model, Path(folder)), args)
    record = {"threads": args.threads, "batch": 1, "input": "PIL 480x640", "precision": "float32", "models": results}
    write("predict_vs_official", record, args.out)


def run(model: str, file: Path, args: argparse.Namespace) -> dict:
    sides = {
        which: Worker([python, "-W", "ignore", __file__, "--threads", str(args.threads), "--worker", which, model, str(file)])
        for which, python in (("ours", sys.executable), ("official", args.official))
    }
    everything = sides["official"].ask(do="outputs", threshold=0.0)
    # a threshold between the scores of ranks 20 and 21: as many detections (and masks) as a busy photo has
    threshold = (everything["scores"][19] + everything["scores"][20]) / 2
    equal = compare(sides["ours"].ask(do="outputs", threshold=threshold), sides["official"].ask(do="outputs", threshold=threshold))
    times: dict[str, list[float]] = {"ours": [], "official": []}
    for which in times:
        sides[which].ask(do="time", n=3, threshold=threshold)
    for i in range(args.rounds):
        for which in ("ours", "official") if i % 2 else ("official", "ours"):
            times[which] += sides[which].ask(do="time", n=args.calls, threshold=threshold)["ms"]
    facts = {which: side.ask(do="facts") for which, side in sides.items()}
    for side in sides.values():
        side.close()
    ms = {which: summary(t) for which, t in times.items()}
    ratio = {q: round(ms["official"][q] / ms["ours"][q], 3) for q in ("p50", "p95")}
    print(f"{model}: ours {ms['ours']['p50']} ms, official {ms['official']['p50']} ms, {ratio['p50']}x", file=sys.stderr)
    return {
        "ms": ms,
        "times_as_fast": ratio,
        "equal": equal,
        "facts": facts,
        "all_ms": {k: [round(x, 1) for x in v] for k, v in times.items()},
    }


if __name__ == "__main__":
    main()
