"""Our packages in Roboflow's real client, offline, against our own predict: how far the detections are apart.

    tools/roboflow_env.sh .venv-roboflow; .venv/bin/python benchmarks/roboflow_client.py

Both sides get the same pictures and threshold and resize with the antialiased filter. Each of ours is paired with the nearest box of
the same class whose score is rounding away; boxes of the client are whole pixels. Random networks (seeded) show layouts for which no
trained file is here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from measure import HERE, write

CLIENT = HERE.parent / ".venv-roboflow" / "bin" / "python"


@dataclass(frozen=True)
class Case:
    model: str
    backend: str = "onnx"
    classes: tuple[str, ...] | None = None  # of a random network; () are COCO's; None: the weights of the package
    size_hw: tuple[int, int] | None = None
    threshold: float = 0.3  # for random networks so high that fewer pairs than queries lie above it: the client ranks without the last row


CASES = {
    "pico": Case("pico"),
    "pico 224x352": Case("pico", size_hw=(224, 352)),
    "seg-pico": Case("seg-pico"),
    "COCO gaps": Case("pico", classes=(), threshold=0.9),
    "nano torch": Case("nano", "torch", ("ant", "bee", "background"), threshold=0.9),
    "seg-nano torch, COCO gaps": Case("seg-nano", "torch", (), threshold=0.9),
}


def detector_of(case: Case) -> Any:
    import torch

    import rapidetr
    from rapidetr.core.config import variant

    if case.classes is None:
        return rapidetr.load(case.model, device="cpu", threads=1, size_hw=case.size_hw)
    config = replace(variant(case.model), class_rows=len(case.classes) + 1 if case.classes else 91)
    network = rapidetr.build(config, seed=0).eval()
    with torch.random.fork_rng(), torch.no_grad():  # fresh heads answer the same for every query
        torch.manual_seed(1)
        network.class_head.weight.normal_(std=0.3)
        network.box_head.layers[-1].weight.normal_(std=0.05)
    labels = rapidetr.LabelSpace.contiguous(case.classes) if case.classes else rapidetr.LabelSpace.coco()
    return rapidetr.Detector.from_module(network, labels)


def scenes(case: Case) -> dict[str, Any]:
    from rapidetr.demo import render_scene

    if case.size_hw:  # nothing to resize
        return {f"scene{i}": render_scene(i, size_hw=case.size_hw).pixels for i in range(3)}
    # sizes that Pillow 12 (the client's) and 13 resize alike; at others some pixels differ
    return {f"scene{i}": render_scene(i, size_hw=size).pixels for i, size in enumerate(((360, 480), (200, 270), (288, 288)))}


def run_case(case: Case, client: Path, folder: Path) -> dict[str, Any]:
    """Counts and largest differences of one package."""
    import numpy as np

    from rapidetr.deployment.export_roboflow import export_roboflow

    detector, pictures = detector_of(case), scenes(case)
    export_roboflow(detector, folder / "package", backend=case.backend)
    np.savez(folder / "pictures.npz", **pictures)
    words = [client, "-W", "ignore", HERE.parent / "tools" / "roboflow_predict.py", folder / "package", folder / "pictures.npz"]
    offline = {**os.environ, "OFFLINE_MODE": "True", "OMP_NUM_THREADS": "1", "HOME": str(folder)}
    done = subprocess.run([*words, str(case.threshold), folder / "found.npz"], env=offline, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the client failed:\n{done.stderr[-2000:]}")
    with np.load(folder / "found.npz") as arrays:
        found = dict(arrays)
    names = found["class_names"].tolist()
    record: dict[str, Any] = {"client": str(found["version"]), "classes": len(names), "detections": 0, "client_detections": 0}
    worst = {"score": 0.0, "box_px": 0.0, "mask_part": 0.0}
    record["same_classes"] = names == detector.class_names
    for name, pixels in pictures.items():
        ours = detector.predict(pixels, case.threshold, purpose="evaluate")[0]
        theirs = {field: found[f"{name}.{field}"] for field in ("xyxy", "class_id", "confidence")}
        theirs["xyxy"] = theirs["xyxy"].clip(0, [pixels.shape[1], pixels.shape[0]] * 2)  # its torch back end does not
        record["detections"] += len(ours)
        record["client_detections"] += len(theirs["xyxy"])
        order = pair(ours, [names[i] for i in theirs["class_id"]], theirs)
        if order is None:
            record["same_classes"] = False
            continue
        if not len(ours):
            continue
        worst["score"] = max(worst["score"], float(np.abs(theirs["confidence"][order] - ours.scores).max()))
        worst["box_px"] = max(worst["box_px"], float(np.abs(theirs["xyxy"][order] - ours.boxes_xyxy_px).max()))
        if ours.masks is not None:
            apart = (found[f"{name}.mask"][order] != ours.masks.dense()).mean((1, 2))
            worst["mask_part"] = max(worst["mask_part"], float(apart.max()))
    if detector.config.segmentation is False:
        del worst["mask_part"]
    return record | {"largest_difference": {k: float(f"{v:.3g}") for k, v in worst.items()}}


def pair(ours: Any, their_names: list[str], theirs: dict[str, Any]) -> list[int] | None:
    """For each of ours the place of its partner; None where one has none. Ranks do not tell: near-equal scores change places."""
    import numpy as np

    free, order = list(range(len(their_names))), []
    for name, score, box in zip(ours.class_names, ours.scores, ours.boxes_xyxy_px, strict=True):
        alike = [i for i in free if their_names[i] == name and abs(theirs["confidence"][i] - score) < 1e-4]
        if not alike:
            return None
        order.append(min(alike, key=lambda i: float(np.abs(theirs["xyxy"][i] - box).max())))
        free.remove(order[-1])
    return order


def main(words: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--client", type=Path, default=CLIENT, help="interpreter of the environment that tools/roboflow_env.sh makes")
    parser.add_argument("--out", help="default: benchmarks/roboflow_client_<hardware>_<date>.json")
    parser.add_argument("--only", choices=CASES, action="append")
    args = parser.parse_args(words)
    records = {}
    for name in args.only or CASES:
        with tempfile.TemporaryDirectory() as folder:
            records[name] = run_case(CASES[name], args.client, Path(folder))
        print(name, json.dumps(records[name]))
    write("roboflow_client", {"cases": records}, args.out)
    return records


if __name__ == "__main__":
    main()
