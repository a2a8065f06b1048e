"""Kills a training run with SIGKILL at random moments, starts it again each time, and compares its end with an undisturbed one.

    python benchmarks/kill_resume.py --kills 20

Writes one JSON document: moments of the kills, sessions, and whether all weights, averages, optimizer and generator states are
bit-equal. The network is tiny and the scenes are rendered; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from measure import write

from rapidetr.core.config import VARIANTS, ModelConfig

TINY: ModelConfig = replace(
    VARIANTS["seg-nano"], name="tiny", size_hw=(96, 96), position_grid=8, vit_width=48, vit_depth=4, vit_heads=3, vit_mlp=96, stages=(2, 4),
    width=64, self_heads=4, cross_heads=4, decoder_layers=2, decoder_ffn=128, queries=20, groups=3,
)  # fmt: skip


def train_here(data: str, out: str) -> None:
    import torch

    from rapidetr.training.run import train

    torch.set_num_threads(1)
    options = {"batch_size": 2, "weights": "random", "rates": "uniform", "watch": "ema", "stages": "head:4,all:36@0.5"}
    train(data, model=TINY, out=out, device="cpu", save_minutes=0.01, **options)


def start(data: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, __file__, "--data", str(data), "--run", str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def compare(one: Path, other: Path) -> list[str]:
    """Names of tensors that differ."""
    import torch
    from safetensors.torch import load_file

    first, second = (load_file(folder / "last" / "state.safetensors") for folder in (one, other))
    return [name for name in first.keys() | second.keys() if not torch.equal(first[name], second[name])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="default: a file in this folder, named by hardware and date")
    parser.add_argument("--data", help=argparse.SUPPRESS)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        train_here(args.data, args.run)
        return
    from rapidetr.demo.dataset import write_dataset

    with tempfile.TemporaryDirectory() as place:
        data, whole, killed = (Path(place) / name for name in ("data", "whole", "killed"))
        write_dataset(data, 12, 1, split={"train": 0.7, "valid": 0.3}, size_hw=(96, 96))
        began = time.perf_counter()
        assert start(data, whole).wait() == 0
        seconds = time.perf_counter() - began
        draw, kills, sessions = random.Random(args.seed), [], 0
        while not (killed / "record.json").exists():
            sessions += 1
            child = start(data, killed)
            if len(kills) == args.kills:
                assert child.wait() == 0
                continue
            after = draw.uniform(0.05, 0.22) * seconds
            try:
                assert child.wait(after) == 0
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGKILL)
                child.wait()
                kills.append(round(after, 2))
        different = compare(whole, killed)
    record = {"kills_after_s": kills, "sessions": sessions, "undisturbed_s": round(seconds, 2), "bit_equal": not different}
    write("kill_resume", {**record, "different": different}, args.out)


if __name__ == "__main__":
    main()
