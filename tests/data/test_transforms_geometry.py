"""Boxes and masks move with the pixels: against masks as the oracle, on pictures with H != W."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from rapidetr.core.errors import DatasetError
from rapidetr.data import augment as augment_module
from rapidetr.data.augment import (
    Affine,
    Blur,
    ColorJitter,
    Flip,
    FlipVertical,
    Noise,
    OfficialResize,
    RandomCrop,
    Turn,
    settle,
    turn_hue,
)
from rapidetr.data.mixing import CopyPaste, Mixing, MixUp, Mosaic, Sometimes, augment, paste
from rapidetr.data.presets import PRESETS, preset
from rapidetr.data.samples import Sample, check
from rapidetr.data.transforms import clip, crop, enclose_masks, flip, flip_vertical, resize, turn, warp

SIZE = (96, 140)


def make(seed: int, size_hw: tuple[int, int] = SIZE, n: int = 5, masks: bool = True) -> Sample:
    """Noise with n solid ellipses; object i has color (40 i + 30, 255, 0) and class i. Later ones may lie on top."""
    rng = np.random.default_rng(seed)
    h, w = size_hw
    pixels = rng.integers(0, 60, (h, w, 3), np.uint8)
    drawn = np.zeros((n, h, w), bool)
    y, x = np.mgrid[:h, :w] + 0.5
    for i in range(n):
        cy, cx, ry, rx = rng.uniform(15, h - 15), rng.uniform(15, w - 15), *rng.uniform(5, 14, 2)
        drawn[i] = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1
        drawn[:i] &= ~drawn[i]
        pixels[drawn[i]] = (40 * i + 30, 255, 0)
    keep = drawn.sum((1, 2)) > 20
    drawn = drawn[keep]
    return Sample(pixels, enclose_masks(drawn), np.flatnonzero(keep), drawn if masks else None, f"seed {seed}")


def agree(sample: Sample) -> None:
    """Contract, tight boxes, and the color of each object under its mask."""
    assert sample.masks is not None
    check(sample, 5, "test")
    assert np.array_equal(sample.boxes_xyxy_px, enclose_masks(sample.masks))
    for class_id, mask in zip(sample.class_ids, sample.masks, strict=True):
        assert (sample.pixels[mask] == (40 * class_id + 30, 255, 0)).all()


def slow_enclose(mask: np.ndarray) -> list[float]:
    ys, xs = np.nonzero(mask)
    return [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def test_enclose_masks_is_the_slow_one() -> None:
    sample = make(0)
    assert sample.masks is not None
    assert enclose_masks(sample.masks).tolist() == [slow_enclose(m) for m in sample.masks]
    assert enclose_masks(sample.masks[:0]).shape == (0, 4)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("move", [flip, flip_vertical, turn])
def test_exact_moves_keep_boxes_tight(move, seed: int) -> None:
    sample = make(seed)
    moved = move(sample)
    agree(moved)
    assert moved.size_hw == (SIZE[::-1] if move is turn else SIZE)
    back = move(move(move(moved))) if move is turn else move(moved)
    assert np.array_equal(back.pixels, sample.pixels)
    assert np.array_equal(back.masks, sample.masks)
    assert np.array_equal(back.boxes_xyxy_px, sample.boxes_xyxy_px)


def test_directions() -> None:
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels[0, 0] = 255
    corner = Sample(pixels, np.array([[0, 0, 1, 1]], np.float32), np.array([0]))
    for move, box in ((flip, [2, 0, 3, 1]), (flip_vertical, [0, 1, 1, 2]), (turn, [0, 2, 1, 3])):
        moved = move(corner)
        assert moved.boxes_xyxy_px.tolist() == [box]
        assert moved.pixels[box[1], box[0], 0] == 255


@pytest.mark.parametrize("seed", range(6))
def test_settled_crops_have_tight_boxes(seed: int) -> None:
    sample = make(seed)
    rng = np.random.default_rng(seed)
    top, left = int(rng.integers(0, 40)), int(rng.integers(0, 60))
    cropped = settle(crop(sample, top, left, (50, 70)))
    agree(cropped)
    before = sample.boxes_xyxy_px - np.array([left, top] * 2)
    inside = np.clip(before, 0, [70, 50, 70, 50])
    share = np.clip(inside[:, 2:] - inside[:, :2], 0, None).prod(1) / (before[:, 2:] - before[:, :2]).prod(1)
    assert sample.masks is not None
    seen = sample.masks[:, top : top + 50, left : left + 70].any((1, 2))
    assert cropped.class_ids.tolist() == sample.class_ids[(share >= 0.2) & seen].tolist()


def test_official_clip_keeps_slivers_and_drops_empty() -> None:
    boxes = np.array([[-5, 2, 1, 8], [10, 10, 10, 14], [12, 3, 30, 9], [40, 1, 50, 5], [9, 9, 4, 4]], np.float32)
    clipped = clip(Sample(np.zeros((20, 24, 3), np.uint8), boxes, np.arange(5)))
    assert clipped.boxes_xyxy_px.tolist() == [[0, 2, 1, 8], [12, 3, 24, 9]]
    assert clipped.class_ids.tolist() == [0, 2]
    masks = np.zeros((2, 20, 24), bool)
    masks[1, 5, 13] = True
    assert clip(replace(clipped, masks=masks)).class_ids.tolist() == [2]  # a box whose mask is out of sight is empty, too


def test_resize_is_pillows_and_scales_boxes() -> None:
    sample = make(1)
    small = resize(sample, (48, 210))
    expected = Image.fromarray(sample.pixels).resize((210, 48), Image.Resampling.BILINEAR)
    assert np.array_equal(small.pixels, np.asarray(expected))
    np.testing.assert_allclose(small.boxes_xyxy_px, sample.boxes_xyxy_px * [1.5, 0.5, 1.5, 0.5], rtol=1e-6)  # float32
    assert small.masks is not None
    # the nearest pixel moves an edge by at most half an old pixel: 0.5 new rows here, 0.75 new columns, then whole pixels
    assert np.abs(enclose_masks(small.masks) - small.boxes_xyxy_px).max() <= 1
    assert resize(sample, SIZE) is sample


@pytest.mark.parametrize("degrees", [0, 30, 90, -140])
def test_warp_moves_boxes_with_masks(degrees: float) -> None:
    sample = make(3)
    a = np.radians(degrees)
    matrix = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    middle = np.array([SIZE[1] / 2, SIZE[0] / 2])
    matrix[:2, 2] = middle - matrix[:2, :2] @ middle
    moved = warp(sample, matrix, (0, 0, 0))
    inside = ((moved.boxes_xyxy_px >= 0) & (moved.boxes_xyxy_px <= [SIZE[1], SIZE[0]] * 2)).all(1)
    assert moved.masks is not None
    whole = inside & (
        sample.masks.sum((1, 2)) > 0.75 * (sample.boxes_xyxy_px[:, 2:] - sample.boxes_xyxy_px[:, :2]).prod(1)
    )  # uncovered ellipses
    assert whole.any()
    tight = enclose_masks(moved.masks[whole])
    assert np.abs(tight - moved.boxes_xyxy_px[whole]).max() <= 1.5  # half a pixel in the ellipse that was drawn, one in its sampling
    for class_id, mask in zip(moved.class_ids[whole], moved.masks[whole], strict=True):
        core = mask & np.roll(mask, 2, 0) & np.roll(mask, -2, 0) & np.roll(mask, 2, 1) & np.roll(mask, -2, 1)
        assert (np.abs(moved.pixels[core].astype(int) - (40 * class_id + 30, 255, 0)) <= 1).all()  # bilinear rounding


def test_quarter_warp_is_turn() -> None:
    sample = make(4, (80, 80))
    warped = warp(sample, np.array([[0.0, 1, 0], [-1, 0, 80], [0, 0, 1]]), (0, 0, 0))
    turned = turn(sample)
    assert np.array_equal(warped.masks, turned.masks)
    np.testing.assert_allclose(warped.boxes_xyxy_px, turned.boxes_xyxy_px, atol=1e-4)  # float32 of 80 has 8e-6


EVERY = [
    Affine(20, (0.6, 1.4), 5, 0.2), RandomCrop(0.4), Flip(), FlipVertical(), Turn(), ColorJitter(0.3, 0.3, 0.3, 0.1), Blur(2.0),
    Noise(20.0), OfficialResize((64, 96)), Mosaic((100, 132)), MixUp(), CopyPaste(), Sometimes(0.5, CopyPaste()),
]  # fmt: skip


MOVING = (Affine, RandomCrop, Flip, FlipVertical, Turn, OfficialResize, Mosaic)  # and keep the colors of objects


@pytest.mark.parametrize("transform", EVERY, ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("seed", range(8))
def test_every_transform_is_pure_and_consistent(transform, seed: int) -> None:
    sample, others = make(seed), [make(50 + seed, (70, 90)), make(80 + seed, (120, 60), n=0)]
    for array in (part for s in (sample, *others) for part in (s.pixels, s.masks, s.boxes_xyxy_px, s.class_ids)):
        array.flags.writeable = False  # writing into its input would raise
    first, again = (augment(sample, [transform], np.random.default_rng(seed), lambda rng: others[rng.integers(2)]) for _ in range(2))
    for name in ("pixels", "boxes_xyxy_px", "class_ids", "masks"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    out = check(first, 5, "test")
    h, w = out.size_hw
    assert ((out.boxes_xyxy_px >= 0) & (out.boxes_xyxy_px <= [w, h, w, h])).all()
    assert (out.boxes_xyxy_px[:, 2:] > out.boxes_xyxy_px[:, :2]).all()
    if not isinstance(transform, OfficialResize):  # there a cut box is clipped, as officially, not drawn anew
        # a resize by the nearest pixel after the box was drawn moves an edge by a new pixel, or one old one, up to 2 new ones here
        slack = 2.5 if isinstance(transform, Mosaic | MixUp) else 0
        assert np.abs(enclose_masks(out.masks) - out.boxes_xyxy_px).max(initial=0) <= slack


@pytest.mark.parametrize("transform", [t for t in EVERY if isinstance(t, MOVING)], ids=lambda t: type(t).__name__)
def test_boxes_without_masks_hold_their_objects(transform) -> None:
    """Found again by color in the result: what is left of an object lies in its box."""
    found = 0
    for seed in range(8):
        bare, other = make(seed, n=1, masks=False), make(9, (120, 60), n=0, masks=False)
        out = augment(bare, [transform], np.random.default_rng(seed), lambda rng: other)  # noqa: B023 - used at once
        ys, xs = np.nonzero(np.abs(out.pixels.astype(int) - (30, 255, 0)).max(2) < 20)
        for box in out.boxes_xyxy_px[:1]:
            found += len(xs) > 0
            assert out.masks is None
            assert len(xs) == 0 or (np.array([xs.min(), ys.min(), -xs.max() - 1, -ys.max() - 1]) >= box * [1, 1, -1, -1] - 1).all()
    assert found >= 4


def test_official_resize_takes_whole_pictures_and_windows() -> None:
    """Windows cover 384 to 600 pixels of a copy whose shorter side is 400, 500 or 600; seen in the scale of a marked box."""
    h, w = 700, 900
    box = np.array([[0, 0, w, h]], np.float32)
    sample = Sample(np.zeros((h, w, 3), np.uint8), box, np.array([0]))
    whole, scales = 0, []
    for seed in range(20):
        out = OfficialResize((320, 320))(sample, np.random.default_rng(seed))
        assert out.size_hw == (320, 320)
        np.testing.assert_allclose(out.boxes_xyxy_px, [[0, 0, 320, 320]], atol=1e-3)  # whatever part is seen, it is full of the object
    dot = Sample(sample.pixels, np.array([[449, 349, 451, 351]], np.float32), np.array([0]))
    for seed in range(160):
        out = OfficialResize((320, 320))(dot, np.random.default_rng(seed))
        if len(out.class_ids):
            x0, y0, x1, y1 = out.boxes_xyxy_px[0]
            if abs((x1 - x0) - 2 * 320 / 900) < 1e-3:
                whole += 1
            elif min(x0, y0) > 0 and max(x1, y1) < 320:
                scales.append(((y1 - y0) / 2, (x1 - x0) / 2))
    assert 55 <= whole <= 105  # 160 throws of a coin: 80 with a deviation of 6.3
    down, across = np.array(scales).T
    np.testing.assert_allclose(down, across, rtol=0.005)  # proportions stay; the smaller copy has whole pixels: 1 in 500
    low, high = (
        400 / 700 * 320 / 400,
        600 / 700 * 320 / 384,
    )  # the smallest copy seen whole in height, the largest through the smallest window
    assert low * 0.995 <= across.min() < low * 1.06
    assert high * 0.94 < across.max() <= high * 1.005


def test_paste_hides_what_it_covers() -> None:
    base = Sample(
        np.zeros((10, 12, 3), np.uint8), np.array([[1, 1, 7, 5], [8, 6, 12, 10]], np.float32), np.array([0, 1]), np.zeros((2, 10, 12), bool)
    )
    base.masks[0, 1:5, 1:7] = base.masks[1, 6:10, 8:12] = True
    patch = Sample(np.full((4, 5, 3), 9, np.uint8), np.array([[0, 0, 4, 4]], np.float32), np.array([2]), np.zeros((1, 4, 5), bool))
    patch.masks[0, :, :4] = True
    pasted = paste(base, patch, 1, 3)
    assert pasted.class_ids.tolist() == [0, 1, 2]
    assert pasted.boxes_xyxy_px.tolist() == [[1, 1, 3, 5], [8, 6, 12, 10], [3, 1, 7, 5]]
    assert (pasted.pixels[1:5, 3:7] == 9).all()
    assert pasted.pixels.sum() == 9 * 3 * 16
    assert pasted.masks.sum((1, 2)).tolist() == [8, 16, 16]
    assert paste(base, patch, 1, 2).class_ids.tolist() == [0, 1, 2]  # 2 of 6 columns are left: 33 %
    assert paste(base, replace(patch, masks=np.ones((1, 4, 5), bool)), 1, 1).class_ids.tolist() == [1, 2]  # 1 of 6: 17 %
    assert not base.pixels.any()


def test_color_jitter_moves_no_gray_hue_and_keeps_identity() -> None:
    sample = make(2)
    same = ColorJitter(0, 0, 0, 0)(sample, np.random.default_rng(0))
    assert np.array_equal(same.pixels, sample.pixels)
    np.testing.assert_allclose(turn_hue(1.1) @ [7, 7, 7], [7, 7, 7])
    np.testing.assert_allclose(turn_hue(2 * np.pi / 3) @ [1, 0, 0], [0, 1, 0], atol=1e-12)  # a third of a circle: red to green
    bright = ColorJitter(0.5, 0, 0)(sample, np.random.default_rng(1)).pixels.astype(float)
    factor = 1 + 0.5 * np.random.default_rng(1).uniform(-1, 1, 4)[0]
    assert np.abs(bright - np.clip(sample.pixels * factor, 0, 255)).max() <= 1  # rounding to whole levels


def test_presets_end_at_the_input_size_and_unknown_names_are_refused() -> None:
    others = [make(7, (150, 110))]
    for name in PRESETS:
        for seed in range(4):
            out = augment(make(seed), preset(name, (64, 96), masks=True), np.random.default_rng(seed), lambda rng: others[0])
            assert out.size_hw == (64, 96)
            check(out, 5, name)
    assert not any(isinstance(t, Sometimes) and isinstance(t.transform, CopyPaste) for t in preset("small-data", (64, 96)))
    with pytest.raises(ValueError) as caught:
        preset("heavy", (64, 96))
    assert str(caught.value) == "augmentation is 'heavy'; expected one of official, aerial, industrial, small-data, render, none"


def test_copy_paste_without_masks_says_so() -> None:
    bare = make(0, masks=False)
    with pytest.raises(ValueError) as caught:
        augment(bare, [CopyPaste()], np.random.default_rng(0), lambda rng: bare)
    wanted = "copy-paste cuts objects out along their masks, but there are none; train a segmentation model or leave it out"
    assert str(caught.value) == wanted
    assert issubclass(CopyPaste, Mixing)


def test_check_names_the_maker_and_the_field() -> None:
    good = make(0)
    n = len(good.class_ids)
    bad = {
        f"it gave boxes float64 [{n}, 4]; expected float32 [{n}, 4] for {n} objects in 96x140 pixels": {
            "boxes_xyxy_px": good.boxes_xyxy_px.astype(float)
        },
        f"it gave masks bool [{n}, 96, 139]; expected bool [{n}, 96, 140] for {n} objects in 96x140 pixels": {
            "masks": good.masks[:, :, 1:]
        },
        f"it gave pixels float64 [96, 140, 3]; expected uint8 [96, 140, 3] for {n} objects in 96x140 pixels": {"pixels": good.pixels / 255},
        "it gave boxes that are not finite; expected x0, y0, x1, y1 in pixels": {"boxes_xyxy_px": good.boxes_xyxy_px + np.float32(np.inf)},
        "it gave the box [9.0, 1.0, 3.0, 5.0]; expected x0 <= x1 and y0 <= y1": {
            "boxes_xyxy_px": np.tile(np.float32([9, 1, 3, 5]), (n, 1))
        },
        "it gave label 7; expected class indices 0..4; map its ids to indices": {"class_ids": np.full(n, 7)},
    }
    for message, change in bad.items():
        with pytest.raises(DatasetError) as caught:
            check(replace(good, **change), 5, "it")
        assert str(caught.value) == message


def test_a_very_thin_picture_keeps_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smaller copy of the official recipe has its short side given: of 2 x 20,000 pixels it would take 7.5 GB."""
    thin = Sample(np.zeros((2, 20_000, 3), np.uint8), np.array([[5, 0, 900, 2]], np.float32), np.array([0]))
    sizes: list[tuple[int, int]] = []
    real = augment_module.resize
    monkeypatch.setattr(augment_module, "resize", lambda sample, size_hw: sizes.append(tuple(size_hw)) or real(sample, size_hw))
    for seed in range(20):
        assert OfficialResize((64, 64))(thin, np.random.default_rng(seed)).size_hw == (64, 64)
    assert set(sizes) == {(64, 64)}
