"""Drop path: which pictures skip which blocks, that nothing changes without it, and that resuming draws the same."""

from __future__ import annotations

import cases
import pytest
import torch
from torch import Tensor

from rapidetr.core.errors import ConfigError
from rapidetr.model.vit import Vit
from rapidetr.training.recipe import Recipe


def encoder(rate: float) -> Vit:
    vit = cases.network("tiny_det").vit.train()
    vit.drop_path = rate
    return vit


def images(count: int = 2) -> Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_rate_0_and_evaluation_draw_nothing_and_change_nothing() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    plain = encoder(0.0)(images())
    for vit in (encoder(0.0), encoder(0.5).eval()):
        assert all(torch.equal(one, other) for one, other in zip(vit(images()), plain, strict=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_skipped_branch_passes_its_input_on_and_the_others_are_scaled() -> None:
    block = encoder(0.0).blocks[2]
    x = torch.rand(2, 5, block.scale1.numel(), generator=torch.Generator().manual_seed(2))
    none, both = torch.zeros(2, 2, 1, 1), torch.ones(2, 2, 1, 1)
    assert torch.equal(block(x, none), x)
    assert torch.equal(block(x, both), block(x))
    first = torch.tensor([1.0, 0.0]).view(2, 1, 1, 1).expand(2, 2, 1, 1)  # attention alone
    twice = block(x, 2 * first) - x
    assert torch.allclose(twice, 2 * (block(x, first) - x), atol=1e-6)  # rounding of one sum


def test_draws_belong_to_pictures_and_their_rate_rises_with_the_block() -> None:
    vit, windows = encoder(0.8), 4
    torch.manual_seed(0)
    x = torch.zeros(4000 * windows, 1, 1)
    for block, rate in enumerate((0.0, 0.16, 0.32, 0.48, 0.64, 0.8)):
        drawn = vit._draw_branches(block, 4000, x)
        by_picture = drawn.view(2, 4000, windows)
        assert (by_picture == by_picture[:, :, :1]).all()
        values = torch.tensor([0.0, 1 / (1 - rate)])
        assert torch.isclose(drawn.view(-1, 1), values).any(1).all()
        # the mean is 1, so that evaluation needs no factor: within 4 standard deviations of 8000 draws
        assert abs(by_picture[..., 0].mean() - 1) <= 4 * (rate / (1 - rate) / 8000) ** 0.5


def test_with_a_rate_training_varies_and_a_seed_repeats_it() -> None:
    vit, runs = encoder(0.9), []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        runs.append(vit(images())[-1])
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_recomputed_blocks_use_the_same_draw() -> None:
    gradients = []
    for checkpointing in (False, True):
        vit = encoder(0.7)
        vit.checkpointing = checkpointing
        torch.manual_seed(5)
        vit(images())[-1].sum().backward()
        gradients.append(vit.patch.weight.grad)
    assert torch.equal(*gradients)


def test_the_rate_is_bounded() -> None:
    with pytest.raises(ConfigError, match=r"drop_path is 1; expected 0 to 0\.9"):
        Recipe(drop_path=1)
