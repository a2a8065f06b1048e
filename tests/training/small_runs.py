"""Small networks, a handful of rendered scenes, and runs that take seconds."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import cases
import torch
from safetensors.torch import load_file

from rapidetr.core.config import ModelConfig
from rapidetr.demo.dataset import write_dataset
from rapidetr.training.run import Run, train

DETECT: ModelConfig = cases.config_of("tiny_det")
SEGMENT: ModelConfig = cases.config_of("tiny_seg")


def write_scenes(folder: Path, *, train: int = 6, valid: int = 2, seed: int = 5) -> Path:
    if not folder.exists():
        write_dataset(folder, train, seed, split="train", size_hw=(96, 96))
        write_dataset(folder, valid, seed, split="valid", size_hw=(96, 96))
    return folder


def run(data: Any, out: Path, *, model: ModelConfig = DETECT, **options: Any) -> Run:
    """Two epochs of five steps with two pictures each, unless told otherwise; time is a counter."""
    usual = {"epochs": 2, "batch_size": 2, "weights": "random", "rates": "uniform", "watch": "ema", "device": "cpu"}
    usual |= {"report": False}  # drawing takes longer than such a run
    clock = itertools.count()
    return train(data, model=model, out=out, say=lambda line: None, now=lambda: float(next(clock)), **{**usual, **options})


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "last" / "state.safetensors")


def assert_same_end(one: Path, other: Path) -> None:
    """Bit-equal weights, averages, optimizer, generators and best checkpoint; the same history but for the time it took."""
    first, second = state_of(one), state_of(other)
    assert set(first) == set(second)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    best, again = load_file(one / "best.safetensors"), load_file(other / "best.safetensors")
    assert all(torch.equal(best[name], again[name]) for name in best)
    histories = [[{k: v for k, v in row.items() if k != "seconds"} for row in lines(folder)] for folder in (one, other)]
    assert histories[0] == histories[1]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
