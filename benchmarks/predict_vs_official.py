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
from measure import HERE, Worker, busy_threshold, interleaved, official_parser, serve, summary, timed, write

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
        self.which = which
        self.detector = self.ours(model, file, threads) if which == "ours" else self.official(model, file, threads)
        self.image = picture()
        self.call(self.image, 0.5)
        self.cold_s = time.perf_counter() - began

    def ours(self, model: str, file: str, threads: int):
        import rapidetr

        return rapidetr.load(file, model=model, device="cpu", threads=threads)

    def official(self, model: str, file: str, threads: int):
        import warnings

        warnings.simplefilter("ignore")
        import rfdetr
        import torch

        torch.set_num_threads(threads)
        return getattr(rfdetr, OFFICIAL[model])(pretrain_weights=file, device="cpu")

    def call(self, image, threshold: float):
        if self.which == "ours":
            return self.detector.predict(image, threshold, include_unnamed=True)[0]
        return self.detector.predict(image, threshold=threshold)

    def handle(self, do: str, n: int = 1, threshold: float = 0.5, size_hw: list[int] | None = None) -> dict:
        if do == "time":
            return {"ms": timed(lambda: self.call(self.image, threshold), n)}
        if do == "outputs":
            image = self.image if size_hw is None else self.image.resize(size_hw[::-1], 2)  # Pillow's antialiased bilinear filter
            stretch = [whole / part for whole, part in zip(self.image.size, image.size, strict=True)]
            return outputs(self.call(image, threshold), stretch)
        return self.facts()

    def facts(self) -> dict:
        package = "rapidetr" if self.which == "ours" else "rfdetr"
        return {"peak_mb": peak_mb(), "lines": lines_loaded(package), "load_and_first_s": self.cold_s}


def peak_mb() -> float:
    """Of this process alone: what getrusage tells begins with the peak of the process that started it."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def outputs(found, stretch: list[float]) -> dict:
    """Boxes, classes, scores and mask sizes, finite; boxes times `stretch`, of x and y."""
    import numpy as np

    official = hasattr(found, "xyxy")
    boxes = found.xyxy if official else found.boxes_xyxy_px
    scores = found.confidence if official else found.scores
    ids = found.class_id if official else found.head_rows
    masks = found.mask if official else found.masks
    pixels = [int(np.asarray(m).sum()) for m in masks] if masks is not None else []
    assert np.isfinite(boxes).all()
    assert np.isfinite(scores).all()
    record = {
        "boxes": (np.asarray(boxes, float) * [*stretch, *stretch]).tolist(),
        "scores": np.asarray(scores, float).tolist(),
        "ids": np.asarray(ids).tolist(),
    }
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
    parser = official_parser(__doc__)
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
    threshold = busy_threshold(sides["official"])
    equal = compare(sides["ours"].ask(do="outputs", threshold=threshold), sides["official"].ask(do="outputs", threshold=threshold))
    times = interleaved(sides, args.rounds, args.calls, threshold)
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
