"""Our predict against the official package's on real photos: same detections, same order, same numbers?

    python benchmarks/parity_vs_official.py --official PYTHON --photos FOLDER --out benchmarks/parity_vs_official_HARDWARE_DATE.json

PYTHON is an interpreter with rfdetr and supervision installed; this one has rapidetr. Both load the same official .pth, filled by
tests/golden/parity_fill.py because trained weights may not be at hand, and run on one thread. A photo whose ranks lie closer
than fp32 can tell (by our run in fp64) is reported and the next one is taken. The last line of the output is the JSON.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SCORES, BOXES_PX, GAP = 1e-4, 0.05, 1e-5  # what must hold, and the rank gap in fp64 below which a photo proves nothing
CASES = {"nano": ("nano_384", "RFDETRNano"), "seg-nano": ("seg-nano_312", "RFDETRSegNano")}


def official(job: dict[str, Any]) -> None:
    """Runs under the official interpreter: the public predict on every photo and threshold, one .npz each."""
    import warnings
    from importlib import metadata

    warnings.simplefilter("ignore")
    import rfdetr
    import torch

    torch.set_num_threads(1)
    model = getattr(rfdetr, job["class"])(pretrain_weights=job["checkpoint"], device="cpu")
    for i, photo in enumerate(job["photos"]):
        for threshold in job["thresholds"]:
            found = model.predict(photo, threshold=threshold)
            bits = {} if found.mask is None else {"mask_bits": np.packbits(found.mask, axis=-1)}
            name = Path(job["folder"]) / f"{i}_{threshold}.npz"
            np.savez(name, xyxy=found.xyxy, confidence=found.confidence, class_id=found.class_id, **bits)
    versions = {name: metadata.version(name) for name in ("rfdetr", "torch", "torchvision", "supervision", "numpy", "Pillow")}
    (Path(job["folder"]) / "versions.json").write_text(json.dumps({"python": platform.python_version(), **versions}))


class Probe:
    """Our detector, and the same network in fp64 with every score of the encoder."""

    def __init__(self, checkpoint: Path) -> None:
        import rapidetr

        self.detector = rapidetr.load(checkpoint, device="cpu", threads=1)
        self.exact = copy.deepcopy(self.detector.model).double()
        self.known: dict[Path, tuple[np.ndarray, np.ndarray]] = {}
        self.scores: list[Any] = []
        self.exact.proposals.groups[0].classes.register_forward_hook(lambda m, i, o: self.scores.append(o.amax(-1)[0].numpy()))

    def pixels(self, photo: Path, filter: str) -> tuple[np.ndarray, tuple[int, int]]:
        from rapidetr.pixels.decode import load_picture

        picture = load_picture(photo).pixels
        return self.detector.engine.prepare([picture], self.detector.preprocessing, filter, None).pixels, picture.shape[:2]

    def ranks(self, photo: Path) -> tuple[np.ndarray, np.ndarray]:
        """(sorted encoder scores, sorted final scores) in fp64, best first, one more of each than is used."""
        import torch

        if photo in self.known:
            return self.known[photo]
        with torch.inference_mode():
            logits = self.exact(torch.from_numpy(self.pixels(photo, "bilinear")[0]).double()).logits[0]
        used = self.detector.config.queries + 1
        self.known[photo] = np.sort(self.scores.pop())[::-1][:used], np.sort(logits.sigmoid().numpy().reshape(-1))[::-1][:used]
        return self.known[photo]

    def filter_shift(self, photo: Path) -> np.ndarray:
        """Largest corner shift in pixels of each query between the two filters, both starting from the same cells in the same order."""
        first: list[Any] = []
        head = self.detector.model.proposals.groups[0].classes
        hook = head.register_forward_hook(lambda m, i, o: first[0] if first else first.append(o))
        corners = []
        for filter in ("bilinear", "bilinear-antialias"):
            pixels, (height, width) = self.pixels(photo, filter)
            boxes = self.detector.engine.run(pixels).boxes[0]
            both = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1).clip(0, 1)
            corners.append(both * np.float32([width, height, width, height]))
        hook.remove()
        return np.abs(corners[0] - corners[1]).max(axis=1)


def gaps(probe: Probe, photo: Path, threshold: float) -> dict[str, float]:
    """Smallest distances in fp64 that decide about the order: between encoder ranks, between final scores, to the threshold."""
    encoder, final = probe.ranks(photo)
    kept = int((final > threshold).sum())
    return {
        "encoder": float(-np.diff(encoder).max()),
        "final": float(-np.diff(final[: kept + 1]).max()),
        "threshold": float(np.abs(final - threshold).min()),
    }


def choose(probe: Probe, folder: Path, count: int, threshold: float) -> tuple[dict[Path, dict[str, float]], list[dict[str, Any]]]:
    """(the first `count` photos whose ranks are clear, with their gaps; those that were passed over)."""
    chosen: dict[Path, dict[str, float]] = {}
    replaced = []
    for photo in sorted(folder.rglob("*.jpg")):
        known = gaps(probe, photo, threshold)
        if min(known.values()) < GAP:
            replaced.append({"photo": photo.name, "fp64_gaps": known})
            continue
        chosen[photo] = known
        if len(chosen) == count:
            break
    return chosen, replaced


def compare(ours: Any, theirs: dict[str, np.ndarray]) -> dict[str, Any]:
    """Differences, position by position."""
    equal = len(ours) == len(theirs["confidence"]) and np.array_equal(ours.head_rows, theirs["class_id"])
    n = min(len(ours), len(theirs["confidence"]))
    scores = np.abs(ours.scores[:n] - theirs["confidence"][:n])
    boxes = np.abs(ours.boxes_xyxy_px[:n] - theirs["xyxy"][:n]).max(axis=1, initial=0)
    off = (ours.head_rows[:n] != theirs["class_id"][:n]) | (scores > SCORES) | (boxes > BOXES_PX)
    return {
        "detections": len(ours),
        "official": len(theirs["confidence"]),
        "same_in_order": bool(equal and not off.any()),
        "positions_off": [int(i) for i in np.flatnonzero(off)],
        "max_score_difference": float(scores.max(initial=0)),
        "max_box_difference_px": float(boxes.max(initial=0)),
    }


def run_official(python: str, name: str, checkpoint: Path, photos: list[Path], thresholds: list[float], folder: Path) -> dict[str, str]:
    job = {"class": CASES[name][1], "checkpoint": str(checkpoint), "photos": [str(p) for p in photos]}
    path = folder / "job.json"
    path.write_text(json.dumps({**job, "thresholds": thresholds, "folder": str(folder)}))
    subprocess.run([python, __file__, "--child", str(path)], check=True, stdout=sys.stderr, env={**os.environ, "OMP_NUM_THREADS": "1"})
    versions: dict[str, str] = json.loads((folder / "versions.json").read_text())
    return versions


def write_checkpoint(name: str, folder: Path) -> Path:
    """The parity-filled network as an official file."""
    sys.path.insert(0, str(ROOT / "tests" / "golden"))
    import cases

    from rapidetr.checkpoints.file import Checkpoint, save_official
    from rapidetr.core.labels import LabelSpace
    from rapidetr.core.preprocessing import Preprocessing

    network = cases.network(CASES[name][0])
    filled = Checkpoint(network.state_dict(), network.config, LabelSpace.coco(), Preprocessing.official(), "")
    return save_official(filled, folder / f"{name}.pth")


def prove_boxes(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    checkpoint = write_checkpoint("nano", folder)
    probe = Probe(checkpoint)
    chosen, replaced = choose(probe, args.photos, args.count, args.threshold)
    thresholds = [args.threshold, 0.0]
    versions = run_official(args.official, "nano", checkpoint, list(chosen), thresholds, folder)
    rows, shifts = [], []
    for i, (photo, known) in enumerate(chosen.items()):
        row: dict[str, Any] = {"photo": photo.name, "fp64_gaps": known}
        for threshold, what in zip(thresholds, ("above_threshold", "all"), strict=True):
            with np.load(folder / f"{i}_{threshold}.npz") as theirs:
                row[what] = compare(probe.detector.predict(photo, threshold, include_unnamed=True)[0], dict(theirs))
        final = -np.diff(probe.ranks(photo)[1])
        off = row["all"]["positions_off"]
        row["all"]["widest_fp64_gap_beside_an_off_position"] = max((float(final[max(p - 1, 0) : p + 1].min()) for p in off), default=0.0)
        shifts.append(probe.filter_shift(photo))
        rows.append(row)
    every = np.concatenate(shifts)
    return {
        "official": versions,
        "threshold": args.threshold,
        "replaced": replaced,
        "photos": rows,
        "summary": summarize(rows),
        "filter_shift": {
            "what": "largest corner shift of each query in photo pixels, bilinear against bilinear-antialias, from the same cells",
            "weights": "parity fill (untrained): trained weights will differ",
            "queries": len(every),
            "median_px": float(np.median(every)),
            "p95_px": float(np.percentile(every, 95)),
            "max_px": float(every.max()),
        },
    }


def summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
    above, everything = [r["above_threshold"] for r in rows], [r["all"] for r in rows]
    return {
        "photos": len(rows),
        "photos_same_in_order": sum(a["same_in_order"] for a in above),
        "detections": sum(a["detections"] for a in above),
        "fewest_detections": min(a["detections"] for a in above),
        "max_score_difference": max(a["max_score_difference"] for a in above),
        "max_box_difference_px": max(a["max_box_difference_px"] for a in above),
        "all_300_photos_same_in_order": sum(a["same_in_order"] for a in everything),
        "all_300_positions": sum(a["detections"] for a in everything),
        "all_300_positions_off": sum(len(a["positions_off"]) for a in everything),
        "all_300_widest_fp64_gap_beside_an_off_position": max(a["widest_fp64_gap_beside_an_off_position"] for a in everything),
    }


def prove_masks(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    checkpoint = write_checkpoint("seg-nano", folder)
    probe = Probe(checkpoint)
    chosen, _ = choose(probe, args.photos, args.mask_photos, args.mask_threshold)
    run_official(args.official, "seg-nano", checkpoint, list(chosen), [args.mask_threshold], folder)
    rows = []
    for i, (photo, known) in enumerate(chosen.items()):
        ours = probe.detector.predict(photo, args.mask_threshold, include_unnamed=True)[0]
        with np.load(folder / f"{i}_{args.mask_threshold}.npz") as theirs:
            masks = np.unpackbits(theirs["mask_bits"], axis=-1, count=ours.image_hw[1]).astype(bool)
            row = {"photo": photo.name, "fp64_gaps": known, **compare(ours, dict(theirs))}
        if row["same_in_order"]:
            row["differing_pixels"] = int(sum((a ^ b).sum() for a, b in zip(ours.masks, masks, strict=True)))
            row["mask_pixels"] = int(masks.sum())
            row["differing_part_of_all_pixels"] = row["differing_pixels"] / masks.size
        rows.append(row)
    return rows


def surroundings() -> dict[str, Any]:
    from importlib import metadata

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    changed = bool(subprocess.run(["git", "status", "--porcelain", "src"], cwd=ROOT, capture_output=True, text=True).stdout.strip())
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "uncommitted_changes_in_src": changed,
        "hardware": {"cpu": cpu, "cores": os.cpu_count(), "threads_used": 1},
        "ours": {"python": platform.python_version(), **{n: metadata.version(n) for n in ("rapidetr", "torch", "numpy", "Pillow")}},
    }


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        official(json.loads(Path(sys.argv[2]).read_text()))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", required=True, help="python interpreter that has rfdetr and supervision")
    parser.add_argument("--photos", type=Path, required=True, help="folder with .jpg photos, searched with its subfolders")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=22)
    parser.add_argument("--threshold", type=float, default=0.66)
    parser.add_argument("--mask-photos", type=int, default=4)
    parser.add_argument("--mask-threshold", type=float, default=0.6)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        boxes = prove_boxes(args, Path(folder))
        masks = prove_masks(args, Path(folder))
    result = {"what": "parity_vs_official", **surroundings(), **boxes, "masks": masks}
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    summary = boxes["summary"]
    print(json.dumps(summary | {"replaced": len(boxes["replaced"]), "masks_same_in_order": sum(m["same_in_order"] for m in masks)}))
    proven = summary["photos_same_in_order"] == summary["photos"] >= 20 and summary["fewest_detections"] >= 50
    return 0 if proven and all(m["same_in_order"] for m in masks) else 1


if __name__ == "__main__":
    sys.exit(main())
