"""Multiplications by formula are those that torch counts in the network."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rapidetr.core.config import VARIANTS, ModelConfig
from rapidetr.core.work import gigamacs
from rapidetr.model.build import build_empty


def counted(config: ModelConfig, size_hw: tuple[int, int], decoder_layers: int, queries: int) -> float:
    network = build_empty(config).eval().requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        network(torch.empty(1, config.in_channels, *size_hw, device="meta"), decoder_layers=decoder_layers, queries=queries)
    return counter.get_total_flops() / 2e9


@pytest.mark.parametrize("name", ["nano", *(pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS if name != "nano")])
def test_every_variant_at_its_own_size(name: str) -> None:
    c = VARIANTS[name]
    assert gigamacs(c, c.size_hw, c.decoder_layers, c.queries) == pytest.approx(
        counted(c, c.size_hw, c.decoder_layers, c.queries), rel=1e-9
    )


@pytest.mark.parametrize(
    "name", [pytest.param("nano", marks=pytest.mark.slow), "seg-medium", pytest.param("large-deprecated", marks=pytest.mark.slow)]
)
def test_other_sizes_layers_and_queries(name: str) -> None:
    c = VARIANTS[name]
    size_hw = (c.divisor * 6, c.divisor * 9)
    assert gigamacs(c, size_hw, 1, 40) == pytest.approx(counted(c, size_hw, 1, 40), rel=1e-9)
    free = replace(c, lite_refine=False, levels=("P4", "P5", "P6"))
    assert gigamacs(free, size_hw, 2, 40) == pytest.approx(counted(free, size_hw, 2, 40), rel=1e-9)
