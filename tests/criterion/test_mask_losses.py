"""Mask costs and losses against versions that form every mask and sample it."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rapidetr.core.errors import ConfigError
from rapidetr.criterion import masks as module
from rapidetr.criterion.masks import mask_costs, mask_losses, sample_targets
from rapidetr.criterion.matcher import Pairs
from rapidetr.criterion.targets import Objects, Target, pack
from rapidetr.model.outputs import FactoredMasks

B, Q, D, H, W = 2, 6, 3, 12, 8
PAIRS = Pairs(torch.tensor([0, 0, 1]), torch.tensor([1, 4, 5]), torch.tensor([1, 0, 2]), [2, 1])


def factors(seed: int = 0) -> FactoredMasks:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((B, D, H, W), (B, Q, D), (1,))
    return FactoredMasks(*(torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes))


def ground_truth() -> tuple[Objects, list[Tensor]]:
    generator = torch.Generator().manual_seed(7)
    masks = [torch.rand(n, *size, generator=generator) > 0.6 for n, size in ((2, (33, 17)), (1, (20, 40)))]
    targets = [Target(torch.zeros(len(m), dtype=torch.int64), torch.rand(len(m), 4), m) for m in masks]
    return pack(targets, torch.zeros(B, Q, 4, dtype=torch.float64)), [m for image in masks for m in image]


def drawing(seed: int = 3) -> Callable[[tuple[int, ...]], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda shape: torch.rand(shape, generator=generator, dtype=torch.float64)


def sampled(plane: Tensor, points: Tensor, mode: str) -> Tensor:
    """[P] of one plane [h, w] at points [P, 2], by torch's own sampler."""
    return F.grid_sample(plane[None, None], 2 * points[None, None] - 1, mode=mode, padding_mode="border", align_corners=False)[0, 0, 0]


def pair_losses(logits: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    p = logits.sigmoid()
    cross_entropy = -(inside * F.logsigmoid(logits) + (1 - inside) * F.logsigmoid(-logits)).mean()
    return cross_entropy, 1 - (2 * (p * inside).sum() + 1) / (p.sum() + inside.sum() + 1)


def test_targets_are_read_at_the_nearest_pixel() -> None:
    objects, planes = ground_truth()
    points = drawing()((1, 500, 2))
    for row, image in ((0, 0), (1, 0), (2, 1)):
        found = sample_targets(objects, image, torch.tensor([row]), points)[0]
        assert torch.equal(found, sampled(planes[row].double(), points[0], "nearest") > 0.5)
    corners = torch.tensor([[[0.0, 0.0], [1.0, 1.0], [0.9999999, 0.0]]], dtype=torch.float64)
    assert sample_targets(objects, 0, torch.tensor([0]), corners)[0].tolist() == [planes[0][0, 0], planes[0][-1, -1], planes[0][0, -1]]


def test_costs_equal_those_of_whole_masks() -> None:
    objects, planes = ground_truth()
    layers = [factors(1), factors(2)]
    found = mask_costs(layers, objects, drawing())
    draw = drawing()
    for i, layer in enumerate(layers):
        points, dense = draw((1, H * W // 16, 2))[0], layer.dense()
        for row, q in itertools.product(range(3), range(Q)):
            logits = sampled(dense[int(objects.image[row]), q], points, "bilinear")
            cross_entropy, dice = pair_losses(logits, sampled(planes[row].double(), points, "nearest"))
            torch.testing.assert_close(found[row, i * Q + q], (5 * cross_entropy + 5 * dice).detach(), rtol=1e-10, atol=1e-12)


def slow_losses(masks: FactoredMasks, planes: list[Tensor], draw: Callable[[tuple[int, ...]], Tensor]) -> tuple[Tensor, Tensor]:
    total = 12  # max(height, a 16th of the pixels)
    candidates, rest = draw((3, 3 * total, 2)), draw((3, total - 9, 2))
    dense, sums = masks.dense(), []
    for i, (image, query, row) in enumerate(zip(*PAIRS[:3], strict=True)):
        plane = dense[image, query]
        order = sampled(plane, candidates[i], "bilinear").abs().argsort()
        points = torch.cat([candidates[i][order[:9]], rest[i]])
        sums.append(pair_losses(sampled(plane, points, "bilinear"), sampled(planes[row].double(), points, "nearest")))
    return torch.stack([s[0] for s in sums]).sum(), torch.stack([s[1] for s in sums]).sum()


@pytest.mark.parametrize("piece", [module.PIECE, 1])
def test_losses_and_gradients_equal_those_of_whole_masks(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also pair by pair, computed again for the backward pass."""
    monkeypatch.setattr(module, "PIECE", piece)
    objects, planes = ground_truth()
    masks = factors()
    found, expected = mask_losses(masks, PAIRS, objects, drawing()), slow_losses(masks, planes, drawing())
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    gradients = [torch.autograd.grad(ce + 2 * dice, masks) for ce, dice in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-12)


def test_gradient_is_the_slope() -> None:
    """The choice of points is without gradient and stays the same under small changes."""
    objects, _ = ground_truth()

    def loss(pixels: Tensor, queries: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return mask_losses(FactoredMasks(pixels, queries, bias), PAIRS, objects, drawing())

    assert torch.autograd.gradcheck(loss, tuple(factors()), fast_mode=True)


def test_without_pairs_all_factors_stay_connected() -> None:
    masks, nobody = factors(), torch.empty(0, dtype=torch.int64)
    objects = pack([Target(nobody, torch.empty(0, 4))] * 2, torch.zeros(B, Q, 4))
    losses = mask_losses(masks, Pairs(nobody, nobody, nobody, [0, 0]), objects, drawing())
    assert [float(v.detach()) for v in losses] == [0, 0]
    for gradient in torch.autograd.grad(sum(losses), masks):
        assert not gradient.any()


def test_boxes_without_masks() -> None:
    targets = [Target(torch.tensor([0]), torch.rand(1, 4)), Target(torch.tensor([0]), torch.rand(1, 4))]
    with pytest.raises(ConfigError) as problem:
        mask_costs([factors()], pack(targets, torch.zeros(B, Q, 4, dtype=torch.float64)), drawing())
    assert str(problem.value) == "image 0 of the batch has boxes but no masks; a segmentation model is trained on masks"
