"""Parts of the network against slow, obvious versions of themselves, and properties that need no reference values."""

from __future__ import annotations

import math
from dataclasses import replace

import cases
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rapidetr.checkpoints.configure import configure
from rapidetr.checkpoints.table import from_ours
from rapidetr.checkpoints.unpickle import Contents
from rapidetr.core.config import VARIANTS
from rapidetr.core.errors import ConfigError
from rapidetr.model.boxes import embed_boxes, refine
from rapidetr.model.build import build
from rapidetr.model.deformable import DeformableAttention, sample
from rapidetr.model.proposals import anchor_boxes
from rapidetr.model.windows import merge, split


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_windows_there_and_back(batch: int, windows: int, rows: int, columns: int) -> None:
    """Height and width differ in nearly every example: two other implementations mixed them up here."""
    h, w = windows * rows, windows * columns
    grid = torch.arange(batch * h * w * 2.0).view(batch, h, w, 2)
    cut = split(grid, windows)
    assert cut.shape == (batch * windows**2, rows * columns, 2)
    assert torch.equal(merge(cut, windows, (h, w)), grid)
    assert torch.equal(cut[0].view(rows, columns, 2), grid[0, :rows, :columns])
    assert torch.equal(cut[windows**2 - 1].view(rows, columns, 2), grid[0, h - rows :, w - columns :])


def test_a_neighbour_in_the_batch_changes_nobody() -> None:
    for case in ("tiny_det", "tiny_seg", "tiny_multi"):
        network, images = cases.network(case), cases.images(case)
        with torch.no_grad():
            alone, together = network(images[:1]), network(torch.cat([images[:1], 9 * images[1:]]))
        # a larger product may be cut into other pieces, so sums round differently
        torch.testing.assert_close(together.logits[:1], alone.logits, rtol=0, atol=2e-5)
        torch.testing.assert_close(together.boxes[:1], alone.boxes, rtol=0, atol=2e-5)


def test_sampling_equals_four_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 3), (2, 4)]
    B, M, dh, Q, P = 2, 3, 4, 5, 2
    values = torch.randn(B, M, dh, sum(h * w for h, w in shapes), generator=generator, dtype=torch.float64)
    where = torch.rand(B, Q, M, len(shapes), P, 2, generator=generator, dtype=torch.float64) * 1.4 - 0.2  # some outside
    sampled = sample(values, where, shapes)
    assert sampled.shape == (B, M, dh, len(shapes) * P, Q)
    for b in range(B):
        for m in range(M):
            for q in range(Q):
                for point in range(len(shapes) * P):
                    level, p = divmod(point, P)
                    expected = bilinear(values[b, m], where[b, q, m, level, p], shapes, level)
                    torch.testing.assert_close(sampled[b, m, :, point, q], expected)


def bilinear(plane: torch.Tensor, at: torch.Tensor, shapes: list[tuple[int, int]], level: int) -> torch.Tensor:
    """Four neighbours by hand; whatever lies outside the map is zero."""
    h, w = shapes[level]
    start = sum(a * b for a, b in shapes[:level])
    x, y = float(at[0]) * w - 0.5, float(at[1]) * h - 0.5
    total = torch.zeros(plane.shape[0], dtype=plane.dtype)
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < h and 0 <= column < w:
                total += plane[:, start + row * w + column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return total


def test_points_lie_around_the_box() -> None:
    """With zero weights for the offsets, the bias alone says where: in halves of the box, divided by the points."""
    config = replace(cases.config_of("tiny_det"), points=2)
    attention = DeformableAttention(config)
    with torch.no_grad():
        attention.reset()
    seen = attention.offsets.bias.view(config.cross_heads, 1, 2, 2)
    for m in range(config.cross_heads):
        angle = 2 * math.pi * m / config.cross_heads
        ray = torch.tensor([math.cos(angle), math.sin(angle)])
        ray = ray / ray.abs().max()
        torch.testing.assert_close(seen[m, 0], torch.stack([ray, 2 * ray]))


def test_sine_embedding_by_formula() -> None:
    boxes = torch.rand(1, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    waves = embed_boxes(boxes, 8)
    assert waves.shape == (1, 2, 16)
    for q in range(2):
        cx, cy, w, h = boxes[0, q].tolist()
        expected = [
            (math.cos if k % 2 else math.sin)(2 * math.pi * value / 10000 ** (2 * (k // 2) / 4))
            for value in (cy, cx, w, h)
            for k in range(4)
        ]
        torch.testing.assert_close(waves[0, q], torch.tensor(expected, dtype=torch.float64))


def test_refinement_moves_and_scales() -> None:
    reference, delta = torch.tensor([0.5, 0.4, 0.2, 0.1]), torch.tensor([0.5, -1.0, math.log(2), 0.0])
    torch.testing.assert_close(refine(reference, delta, reparam=True), torch.tensor([0.6, 0.3, 0.4, 0.1]))
    torch.testing.assert_close(refine(reference, delta, reparam=False), reference + delta)
    assert refine(reference, delta.bfloat16(), reparam=True).dtype == torch.float32


@pytest.mark.parametrize(("side", "invalid"), [(49, 0), (50, 4 * 50 - 4), (52, 4 * 52 - 4)])
def test_border_anchors_of_large_grids_are_invalid(side: int, invalid: int) -> None:
    boxes, valid = anchor_boxes([(side, side)], torch.device("cpu"))
    assert int((~valid).sum()) == invalid
    assert boxes.shape == (side * side, 4)


def test_registers_and_the_coarsest_level() -> None:
    """Unpublished members of the family: four register tokens, and P6 as every second pixel of the level before."""
    config = replace(cases.config_of("tiny_det"), registers=4, levels=("P4", "P6"))
    network = build(config, seed=0).eval()
    image = cases.images("tiny_det")[:1]
    with torch.no_grad():
        output = network(image)
        levels = network.projector(network.vit(image))
        assert torch.equal(levels[1], levels[0][:, :, ::2, ::2])
        before = output.logits
        network.vit.registers.add_(1.0)
        assert not torch.equal(network(image).logits, before)  # they take part in attention
    assert output.logits.shape == (1, 20, 7)
    names = from_ours(network.state_dict(), config)
    assert names["backbone.0.encoder.encoder.embeddings.register_tokens"].shape == (1, 4, 48)
    shapes = from_ours(build(replace(VARIANTS["nano"], registers=4, groups=1), seed=0).state_dict(), VARIANTS["nano"])
    told = Contents(state=shapes, args={"num_windows": 2}, model_config=None, model_name=None, version=None, kind="rfdetr")
    assert configure(told)[0] == replace(VARIANTS["nano"], registers=4, groups=1)


def test_training_groups_do_not_see_each_other() -> None:
    """Answers of the first group are the same, however many groups are asked for."""
    network, image = cases.network("tiny_det"), cases.images("tiny_det")[:1]
    with torch.no_grad():
        one, three = network(image, every_layer=True), network(image, 3, every_layer=True)
    for a, b in zip(one.layers, three.layers, strict=True):
        torch.testing.assert_close(b.logits[:, :20], a.logits, rtol=0, atol=1e-5)
        torch.testing.assert_close(b.boxes[:, :20], a.boxes, rtol=0, atol=1e-5)
    assert three.logits.shape == (1, 60, 7)


def test_recomputing_blocks_changes_no_gradient() -> None:
    grads = []
    for checkpointing in (False, True):
        network = cases.network("tiny_det").train()
        network.vit.checkpointing = checkpointing
        network(cases.images("tiny_det"), 3).logits.square().sum().backward()
        grads.append([p.grad.clone() for p in network.vit.parameters() if p.grad is not None])
    assert len(grads[0]) > 50
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@torch.no_grad()
def test_fresh_weights_follow_the_recipe() -> None:
    network = build("nano", num_classes=3, seed=3)
    torch.testing.assert_close(network.class_head.bias, torch.full((4,), -math.log(99)))
    assert not network.box_head.layers[-1].weight.any()
    assert not network.query_boxes.any()
    assert abs(float(network.query_content.std()) - 1) < 0.01
    for group in network.proposals.groups:
        assert torch.equal(group.classes.weight, network.class_head.weight)
        assert torch.equal(group.boxes.layers[0].weight, network.box_head.layers[0].weight)
    bound = math.sqrt(6 / (4 * 256))
    qkv = network.decoder.layers[0].self_attention.qkv
    assert bound * 0.99 < float(qkv.weight.abs().max()) <= bound
    assert not qkv.bias.any()
    assert abs(float(network.vit.blocks[0].up.weight.std()) - 0.02) < 0.001
    assert not network.vit.mask_token.requires_grad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": 4}, "groups is 4; this network has 1 to 3"),
        ({"decoder_layers": 0}, "decoder_layers is 0; this network has 1 to 2"),
        ({"groups": 3, "queries": 5}, "queries is 5 with 3 groups; fewer queries are for inference, with one group"),
    ],
)
def test_wrong_extents_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$"):
        cases.network("tiny_det")(cases.images("tiny_det"), **arguments)


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^image width 72 is not a multiple of 16 \(patch 8 x 2 windows\); use 64 or 80$"):
        cases.network("tiny_det")(torch.zeros(1, 3, 64, 72))
