"""800 boxes in one image: what matcher and losses may hold at once, counted by torch's own allocator."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from rapidetr.core.config import variant
from rapidetr.criterion.criterion import Criterion
from rapidetr.criterion.targets import Target
from rapidetr.model.outputs import LayerOutput, Output

pytestmark = pytest.mark.slow  # the profiler takes seconds to start
NANO = variant("nano")
QUERIES, LAYERS, MEGABYTE = NANO.groups * NANO.queries, NANO.decoder_layers + 1, 2**20


def allocated_peak(call: Callable[[], object], folder: Path) -> int:
    """Bytes: the largest sum of tensors alive at once that were made during the call."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    profiled.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    return max(event["args"]["Total Allocated"] for event in events if event.get("name") == "[memory]")


def test_the_counter_counts(tmp_path: Path) -> None:
    def call() -> None:
        kept = torch.zeros(MEGABYTE, dtype=torch.uint8)
        freed = kept + 1
        del freed
        kept[1:] + 1

    assert 2 * MEGABYTE <= allocated_peak(call, tmp_path) < 2.01 * MEGABYTE


def answers() -> Output:
    """Random answers of Nano in training for two images."""
    generator = torch.Generator().manual_seed(0)

    def layer() -> LayerOutput:
        boxes = torch.rand(2, QUERIES, 4, generator=generator) * 0.5 + 0.2
        return LayerOutput(torch.randn(2, QUERIES, NANO.class_rows, generator=generator).requires_grad_(), boxes.requires_grad_(), None)

    layers = tuple(layer() for _ in range(LAYERS - 1))
    return Output(layers[-1].logits, layers[-1].boxes, None, layers, layer())


def target(count: int) -> Target:
    generator = torch.Generator().manual_seed(count)
    return Target(torch.randint(90, (count,), generator=generator), torch.rand(count, 4, generator=generator) * 0.4 + 0.2)


def test_matcher_and_losses_of_800_boxes_stay_within_100_megabytes(tmp_path: Path) -> None:
    """Forward and backward of Nano, batch 2: costs of 4 bytes x objects x queries of all layers, 32 MB of pieces, the gradients."""
    output, targets = answers(), [target(800), target(10)]
    peak = allocated_peak(lambda: Criterion()(output, targets, groups=NANO.groups).total.backward(), tmp_path)
    costs = 4 * 810 * LAYERS * QUERIES
    assert costs < peak < costs + 64 * MEGABYTE < 101 * MEGABYTE
