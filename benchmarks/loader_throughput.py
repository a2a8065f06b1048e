"""Pictures a second that the loader makes with the official augmentation for Nano, beside those that training takes; writes JSON.

    .venv/bin/python benchmarks/loader_throughput.py

Rendered scenes of 480 x 640 as JPEG files, batches of 4 at 544 x 544, the largest input of multi-scale training at 384. Made in the
training process itself (0 workers) and by one worker, in turn, an epoch at a time: one core either way. What training takes is read
from the newest train_vs_official file beside this script (our float32, batch 4, all its threads).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from measure import HERE, summary, write

SIZE_HW, BATCH, WORKERS = (544, 544), 4, (0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a dataset folder; default: rendered scenes")
    parser.add_argument("--images", type=int, default=120, help="scenes to render")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--out")
    args = parser.parse_args()
    import torch

    from rapidetr.demo.dataset import write_dataset

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = args.data or write_dataset(Path(folder) / "scenes", args.images, 0, size_hw=(480, 640))
        rates = measure(data, args.rounds)
    found = {str(workers): summary(rate) for workers, rate in rates.items()}
    training = newest_training()
    if training:
        training["loader_times_as_fast"] = {workers: round(rate["p50"] / training["images_per_s"], 1) for workers, rate in found.items()}
    record = {"pictures": args.data or f"{args.images} rendered scenes, 480x640", "augment": "official", "size_hw": SIZE_HW, "batch": BATCH}
    write("loader_throughput", {**record, "images_per_s_by_workers": found, "training": training}, args.out)


def measure(data: str | Path, rounds: int) -> dict[int, list[float]]:
    """Images a second of each epoch, by number of workers; one epoch each before them does not count."""
    import torch

    from rapidetr.core.preprocessing import Preprocessing
    from rapidetr.data.batches import Loader
    from rapidetr.data.read import read_dataset
    from rapidetr.data.sampling import EpochOrder

    dataset = read_dataset(data, "train")
    order = EpochOrder(len(dataset), BATCH)
    loaders = {workers: Loader(dataset, order, SIZE_HW, Preprocessing(), workers=workers) for workers in WORKERS}
    rates: dict[int, list[float]] = {workers: [] for workers in WORKERS}
    for epoch in range(1 + rounds):
        for workers, loader in loaders.items():
            began = time.perf_counter()
            count = 0
            for batch in loader.epoch(epoch):
                assert torch.isfinite(batch.pixels).all()
                count += len(batch.pixels)
            if epoch:
                rates[workers].append(count / (time.perf_counter() - began))
    return rates


def newest_training() -> dict:
    """Images a second of our training, and where that is from; empty without a file."""
    files = sorted(HERE.glob("train_vs_official_*.json"), key=lambda path: json.loads(path.read_text())["date"])
    if not files:
        return {}
    record = json.loads(files[-1].read_text())
    side = record["batches"][str(BATCH)]["ours float32"]
    return {"file": files[-1].name, "threads": record["threads"], "images_per_s": round(1000 * BATCH / side["ms"]["p50"], 2)}


if __name__ == "__main__":
    main()
