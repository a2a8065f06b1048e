"""The order of epochs, its shares among ranks, repeat factors and the sizes of multi-scale steps."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from rapidetr.core.config import VARIANTS
from rapidetr.core.errors import ConfigError
from rapidetr.data.records import Annotation, ImageRecord
from rapidetr.data.sampling import EpochOrder, class_weights, multi_scale_sizes, repeat_factors, size_of_step


def test_every_picture_once_and_the_same_fill_each_epoch() -> None:
    order = EpochOrder(images=103, batch=4, accumulation=2, seed=5)
    assert (order.steps, order.step_images) == (13, 8)
    fill = np.random.default_rng(0).integers(103, size=1)
    epochs = [order.indices(e) for e in range(3)]
    for indices in epochs:
        assert sorted(indices) == sorted([*range(103), *fill])
    assert not np.array_equal(epochs[0], epochs[1])
    assert np.array_equal(epochs[2], EpochOrder(images=103, batch=4, accumulation=2, seed=5).indices(2))
    assert not np.array_equal(epochs[2], EpochOrder(images=103, batch=4, accumulation=2, seed=6).indices(2))


@pytest.mark.parametrize(("images", "steps"), [(40, 5), (39, 5), (33, 5), (41, 6), (1, 5)])
def test_small_sets_have_five_steps(images: int, steps: int) -> None:
    order = EpochOrder(images=images, batch=8)
    indices = order.indices(0)
    assert order.steps == steps
    assert len(indices) == 8 * steps
    assert 0 <= indices.min() <= indices.max() < images
    if images >= 40:
        assert set(indices) == set(range(images))
    else:
        assert images == 1 or len(set(indices)) < images  # with replacement: some are left out (sure for these seeds)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_ranks_see_together_what_one_rank_sees(accumulation: int) -> None:
    one = EpochOrder(images=101, batch=6, accumulation=accumulation, seed=1)
    two = EpochOrder(images=101, batch=3, accumulation=accumulation, world=2, seed=1)
    alone, ranks = one.batches(4), [two.batches(4, rank) for rank in range(2)]
    assert len(alone) == len(ranks[0]) == one.steps * accumulation
    assert alone == [left + right for left, right in zip(*ranks, strict=True)]
    assert one.batches(4, start=7) == alone[7:]
    assert [key.position for batch in alone for key in batch] == list(range(len(alone) * 6))


def test_accumulating_shows_each_step_the_same_pictures() -> None:
    small, large = EpochOrder(images=90, batch=2, accumulation=4).indices(0), EpochOrder(images=90, batch=8).indices(0)
    assert np.array_equal(small, large)


def record(*class_ids: int, crowd: bool = False) -> ImageRecord:
    objects = [Annotation(k, c, (0, 0, 4, 4), crowd=crowd) for k, c in enumerate(class_ids)]
    return ImageRecord.build(objects, path="a.png", image_id=1, split="train", size_hw=(8, 8), file="a.json")


def test_repeat_factors_follow_the_paper() -> None:
    images = [record(0), record(0, 0), record(0, 1), record(0, 2), record(), record(0), record(0), record(2, crowd=True)]
    # f: class 0 in 6 of 8, class 1 in 1 of 8, class 2 in 1 of 8 (the crowd does not count)
    rare = np.sqrt(0.5 / 0.125)
    np.testing.assert_allclose(repeat_factors(images, 0.5), [1, 1, rare, rare, 1, 1, 1, 1])
    np.testing.assert_allclose(repeat_factors(images, 0.1), np.ones(8))


def test_repeats_come_out_in_the_mean_and_in_bounds() -> None:
    repeats = np.random.default_rng(3).uniform(1, 3.5, 60)
    order = EpochOrder(images=60, batch=1, repeats=repeats)
    assert order.shown == int(np.ceil(repeats.sum()))
    counts = np.array([np.bincount(order.indices(e), minlength=60) for e in range(400)])
    stretched = repeats * order.shown / repeats.sum()
    assert (counts.sum(1) == order.shown).all()
    assert (counts >= 1).all()
    assert ((counts >= np.floor(stretched)) & (counts <= np.ceil(stretched))).all()
    assert np.abs(counts.mean(0) - stretched).max() < 5 * 0.5 / np.sqrt(400)  # a coin has deviation 0.5 at most; five of them


def test_class_weights() -> None:
    counts = np.array([100, 0, 25, 4])
    weights = class_weights(counts)
    assert weights[1] == 1
    np.testing.assert_allclose(weights[[2, 3]] / weights[0], [2, 5])
    np.testing.assert_allclose((weights * counts).sum() / counts.sum(), 1)
    np.testing.assert_allclose(class_weights(counts, 0), np.ones(4))
    np.testing.assert_allclose(class_weights(np.zeros(3, int)), np.ones(3))


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        EpochOrder(images=0, batch=2)
    assert str(caught.value) == "0 images, batch 2, accumulation 1, world 1; expected at least 1 of each"
    with pytest.raises(ConfigError) as caught:
        EpochOrder(images=3, batch=2, repeats=np.ones(2))
    assert str(caught.value) == "repeats are [2]; expected one number of at least 1 for each of 3 images"


def test_sizes_of_nano() -> None:
    assert multi_scale_sizes(32, (384, 384)) == tuple((s, s) for s in range(224, 545, 32))
    assert multi_scale_sizes(32, (384, 384), expanded=False) == tuple((s, s) for s in range(288, 513, 32))
    assert multi_scale_sizes(32, (128, 128))[0] == (64, 64)  # 32 and below are left out
    wide = multi_scale_sizes(32, (384, 640))
    assert wide[0] == (224, 384)  # 7 x 5/3 = 11.67 -> 12
    assert wide[5] == (384, 640)
    assert all(h % 32 == 0 and w % 32 == 0 for h, w in wide)
    assert multi_scale_sizes(32, (640, 384)) == tuple((w, h) for h, w in wide)


def test_sizes_match_the_published_lists(shared: Path) -> None:
    listed = json.loads((shared / "spec" / "variants.json").read_text())["variants"]
    compared = 0
    for name, config in VARIANTS.items():
        if name in listed:
            derived = listed[name]["derived"]
            for key, expanded in (("multi_scale_sizes_expanded", True), ("multi_scale_sizes_plain", False)):
                assert [h for h, _ in multi_scale_sizes(config.divisor, config.size_hw, expanded=expanded)] == derived[key], name
                compared += 1
    assert compared >= 30


def test_size_of_a_step_is_the_official_draw() -> None:
    sides = list(range(224, 545, 32))
    sizes = multi_scale_sizes(32, (384, 384))
    assert [size_of_step(s, sizes)[0] for s in range(50)] == [random.Random(s).choice(sides) for s in range(50)]
