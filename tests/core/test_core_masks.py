"""Run lengths against pycocotools; crops, moves and outlines against slow versions; damaged strings."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco
from scipy import ndimage

from rapidetr.core.errors import ConfigError
from rapidetr.core.masks import Masks, compress_counts, counts_of_rle, simplify

SIZES = [(1, 1), (1, 9), (9, 1), (2, 2), (5, 7), (31, 17), (64, 33), (100, 3)]


def random_masks(size_hw: tuple[int, int], seed: int) -> np.ndarray:
    """bool [N, H, W]: noise of several densities, blobs, empty, full, single pixels in the corners."""
    rng = np.random.default_rng(seed)
    h, w = size_hw
    noise = [rng.random(size_hw) < p for p in (0.02, 0.3, 0.5, 0.8, 0.98)]
    blobs = [ndimage.uniform_filter(rng.random(size_hw), 5) > t for t in (0.45, 0.5, 0.55)]
    dots = np.zeros((4, h, w), bool)
    dots[0, 0, 0] = dots[1, 0, -1] = dots[2, -1, 0] = dots[3, -1, -1] = True
    return np.array([*noise, *blobs, *dots, np.zeros(size_hw, bool), np.ones(size_hw, bool)])


@pytest.mark.parametrize("size_hw", SIZES)
def test_run_lengths_are_those_of_pycocotools(size_hw: tuple[int, int]) -> None:
    dense = random_masks(size_hw, 0)
    masks = Masks.from_dense(dense)
    theirs = coco.encode(np.asfortranarray(dense.transpose(1, 2, 0).astype(np.uint8)))
    assert [r["counts"] for r in masks.rle()] == [r["counts"].decode() for r in theirs]
    assert all(r["size"] == list(size_hw) for r in masks.rle())
    assert masks.areas.tolist() == coco.area(theirs).tolist() == dense.sum((1, 2)).tolist()
    assert (masks.dense() == dense).all()
    assert all((one == d).all() for one, d in zip(masks, dense, strict=True))
    assert Masks.from_rle(masks.rle(), size_hw) == masks
    assert Masks.from_rle([{**r, "counts": r["counts"].encode()} for r in masks.rle()], size_hw) == masks
    assert Masks.from_rle([{"size": list(size_hw), "counts": c.tolist()} for c in masks.counts], size_hw) == masks


def test_long_runs_survive_the_string_form() -> None:
    counts = np.array([2**31 - 1, 1, 2**30, 7, 5, 2**29], np.uint32)  # differences need seven groups of five bits
    record = {"counts": compress_counts(counts)}
    total = int(counts.sum(dtype=np.int64))
    assert counts_of_rle(record, (total, 1)).tolist() == counts.tolist()
    theirs = coco.frPyObjects({"size": [total, 1], "counts": counts.tolist()}, total, 1)
    assert theirs["counts"].decode() == record["counts"]


def test_indexing() -> None:
    dense = random_masks((7, 5), 1)
    masks = Masks.from_dense(dense)
    assert (masks[3] == dense[3]).all()
    assert (masks[np.int64(-1)] == dense[-1]).all()
    assert (masks[2:5].dense() == dense[2:5]).all()
    assert (masks[np.array([4, 1])].dense() == dense[[4, 1]]).all()
    assert (masks[dense.any((1, 2))].dense() == dense[dense.any((1, 2))]).all()
    assert len(masks[:0]) == 0
    assert masks[:0].dense().shape == (0, 7, 5)
    with pytest.raises(IndexError):
        masks[len(masks)]
    assert masks != masks[::-1]
    assert masks != "masks"


def test_dense_masks_need_three_axes() -> None:
    with pytest.raises(ConfigError, match=r"^masks have shape \(4, 5\); expected \[N, H, W\]$"):
        Masks.from_dense(np.zeros((4, 5), bool))


@pytest.mark.parametrize("size_hw", SIZES)
def test_crop_is_the_smallest_rectangle(size_hw: tuple[int, int]) -> None:
    dense = random_masks(size_hw, 2)
    masks = Masks.from_dense(dense)
    for i, mask in enumerate(dense):
        (y, x), crop = masks.crop(i)
        restored = np.zeros(size_hw, bool)
        restored[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
        assert (restored == mask).all()
        ys, xs = np.nonzero(mask)
        assert crop.shape == ((np.ptp(ys) + 1, np.ptp(xs) + 1) if len(ys) else (0, 0))


@pytest.mark.parametrize("offset_yx", [(0, 0), (3, 0), (0, 4), (3, 4), (2, 1)])
def test_moved_masks_are_pasted_masks(offset_yx: tuple[int, int]) -> None:
    dense = random_masks((7, 5), 3)
    y, x = offset_yx
    pasted = np.zeros((len(dense), 10, 9), bool)
    pasted[:, y : y + 7, x : x + 5] = dense
    assert Masks.from_dense(dense).moved((10, 9), offset_yx) == Masks.from_dense(pasted)


@pytest.mark.parametrize("offset_yx", [(4, 0), (0, 5), (-1, 0), (0, -1)])
def test_masks_do_not_move_out_of_the_picture(offset_yx: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="does not lie inside a picture of 10x9"):
        Masks.from_dense(np.ones((1, 7, 5), bool)).moved((10, 9), offset_yx)


def shoelace(ring: np.ndarray) -> float:
    x, y = ring.astype(float).T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def fill_even_odd(rings: list[np.ndarray], size_hw: tuple[int, int]) -> np.ndarray:
    """A pixel is inside when a ray from its center to the left crosses an odd number of upright edges."""
    toggles = np.zeros((size_hw[0], size_hw[1] + 1), int)
    for ring in rings:
        for (x0, y0), (x1, y1) in zip(ring.astype(int).tolist(), np.roll(ring, -1, axis=0).astype(int).tolist(), strict=True):
            assert (x0 == x1) != (y0 == y1)  # exact outlines run along one pixel edge direction at a time
            if x0 == x1:
                toggles[min(y0, y1) : max(y0, y1), x0] += 1
    return np.cumsum(toggles, axis=1)[:, :-1] % 2 == 1


@pytest.mark.parametrize("size_hw", SIZES)
def test_exact_outlines_hold_the_mask_and_its_holes(size_hw: tuple[int, int]) -> None:
    """One clockwise ring for each 4-connected region, saddle pixels included; what it encloses is the region without holes."""
    dense = random_masks(size_hw, 4)
    for mask, rings in zip(dense, Masks.from_dense(dense).polygons(tolerance=0), strict=True):
        regions, n = ndimage.label(mask)
        assert len(rings) == n
        filled = sorted(int(ndimage.binary_fill_holes(regions == i, np.ones((3, 3))).sum()) for i in range(1, n + 1))
        assert sorted(shoelace(r) for r in rings) == filled
        for ring in rings:
            steps = np.roll(ring, -1, axis=0) - ring
            assert ((steps[:, 0] == 0) != (np.roll(steps, -1, axis=0)[:, 0] == 0)).all()  # turns at every point
        plain = ndimage.binary_fill_holes(mask, np.ones((3, 3)))
        if (plain == mask).all():
            assert (fill_even_odd(rings, size_hw) == mask).all()


def test_two_pixels_that_touch_at_a_corner_are_two_outlines() -> None:
    for mask in (np.eye(2, dtype=bool), np.eye(2, dtype=bool)[::-1]):
        rings = Masks.from_dense(mask[None]).polygons(0)[0]
        assert sorted(r.tolist() for r in rings) == sorted(
            [[x, y], [x + 1, y], [x + 1, y + 1], [x, y + 1]] for y, x in np.argwhere(mask).tolist()
        )


def test_a_region_that_touches_a_hole_at_a_corner_is_not_lost() -> None:
    mask = np.ones((6, 6), bool)
    mask[1:5, 1:5] = False
    mask[1, 1] = mask[2, 2] = mask[4, 4] = True  # 2, 2 stands alone; its upper left corner is one of the hole
    areas = sorted(shoelace(r) for r in Masks.from_dense(mask[None]).polygons(0)[0])
    assert areas == [1, 36]


def test_small_regions_far_from_the_corner_are_not_lost() -> None:
    mask = np.zeros((1, 5001, 5001), bool)
    mask[0, 0, 0] = mask[0, 5000, 5000] = mask[0, 4990, 4995] = True
    mask[0, 4800:4803, 4800:4803] = True
    mask[0, 4801, 4801] = False  # a hole of one pixel is no outline
    assert sorted(shoelace(r) for r in Masks.from_dense(mask).polygons(0)[0]) == [1, 1, 1, 9]


def test_rasterised_outlines_restore_a_mask() -> None:
    """PIL draws whole-number corners as pixels, so the picture is drawn eight times larger and read at pixel centers."""
    mask = ndimage.uniform_filter(np.random.default_rng(5).random((40, 50)), 7) > 0.5
    mask = ndimage.binary_fill_holes(mask, np.ones((3, 3)))
    large = Image.new("1", (400, 320))
    for ring in Masks.from_dense(mask[None]).polygons(0)[0]:
        ImageDraw.Draw(large).polygon((ring * 8).ravel().tolist(), fill=1)
    assert (np.asarray(large)[4::8, 4::8] == mask).all()


@pytest.mark.parametrize("tolerance", [0.8, 1.0, 3.0])
def test_simple_outlines_stay_within_the_tolerance(tolerance: float) -> None:
    yy, xx = np.mgrid[:60, :80]
    mask = ((yy - 30) / 25) ** 2 + ((xx - 40) / 35) ** 2 < 1
    (exact,), (slim,) = Masks.from_dense(mask[None]).polygons(0)[0], Masks.from_dense(mask[None]).polygons(tolerance)[0]
    assert 3 <= len(slim) < len(exact) / 2
    assert {tuple(p) for p in slim.tolist()} <= {tuple(p) for p in exact.tolist()}
    begin, end = slim, np.roll(slim, -1, axis=0)
    for point in exact:
        along = np.clip(((point - begin) * (end - begin)).sum(1) / ((end - begin) ** 2).sum(1), 0, 1)
        distance = np.hypot(*(begin + along[:, None] * (end - begin) - point).T).min()
        assert distance <= tolerance + 1e-4  # float32 coordinates up to 80


def test_simplify_keeps_three_points() -> None:
    stair = np.array([[0, 0], [3, 0], [3, 1], [2, 1], [2, 2], [0, 2]], np.float32)
    assert len(simplify(stair, 100.0)) >= 3
    assert simplify(stair, 0) is stair


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")  # pycocotools'
def test_runs_of_nothing_from_other_programs() -> None:
    """pycocotools reads counts with zeros inside; here they become the one form that a mask has."""
    rng = np.random.default_rng(6)
    for _ in range(50):
        counts = rng.integers(0, 4, rng.integers(1, 9)).tolist()
        counts.append(42 - sum(counts))
        record = {"size": [6, 7], "counts": counts}
        dense = coco.decode(coco.frPyObjects(record, 6, 7)).astype(bool)
        assert Masks.from_rle([record], (6, 7)) == Masks.from_dense(dense[None])
        assert Masks.from_rle([{"size": [6, 7], "counts": compress_counts(np.array(counts))}], (6, 7)) == Masks.from_dense(dense[None])


DAMAGED: list[object] = [
    None, [], "9", {}, {"counts": None}, {"counts": 9}, {"counts": ""}, {"counts": "é"}, {"counts": "日9"}, {"counts": "\ud800"},
    {"counts": b"\xff"}, {"counts": "^"}, {"counts": "oooooooooooo0"}, {"counts": []}, {"counts": [8]}, {"counts": [10, -1]},
    {"counts": [1.5, 7.5]}, {"counts": ["9"]}, {"counts": [None]}, {"counts": [2**70]}, {"counts": [[4, 5]]}, {"counts": {"a": 1}},
    {"counts": [9], "size": [1, 9]}, {"counts": [9], "size": [3]}, {"counts": [9], "size": "33"}, {"counts": [9], "size": 9},
    {"counts": [9], "size": [None, 3]}, {"counts": [100], "size": [10, 10]},
    {"counts": [9], "size": [-3, -3]}, {"counts": [2**40], "size": [2**20, 2**20]},
]  # fmt: skip


@pytest.mark.parametrize("record", DAMAGED, ids=str)
def test_damaged_records_are_refused(record: object) -> None:
    with pytest.raises(ConfigError, match="run-length"):
        Masks.from_rle([record], (3, 3))  # type: ignore[list-item]


@pytest.mark.parametrize("size", [[-3, -3], [2**20, 2**20], None, [9], "33"])
def test_sizes_of_records_are_checked_where_none_is_expected(size: object) -> None:
    assert counts_of_rle({"counts": [4, 5], "size": [3, 3]}).tolist() == [4, 5]
    with pytest.raises(ConfigError, match="run-length record"):
        counts_of_rle({"counts": [9], "size": size})


def test_a_sum_that_wraps_around_is_refused() -> None:
    """Numbers so large that their 64-bit sum overflows."""
    huge = np.full(2**12, 2**39 - 1, np.int64)
    with pytest.raises(ConfigError, match="run-length"):
        counts_of_rle({"counts": compress_counts(huge)}, (3, 3))


def test_mutated_strings_raise_nothing_else() -> None:
    """Three thousand seeded mutations: each is refused with ConfigError or is a mask of the right size."""
    rng = np.random.default_rng(7)
    accepted = 0
    good = [r["counts"].encode() for r in Masks.from_dense(random_masks((31, 17), 8)).rle()]
    for _ in range(3000):
        text = bytearray(good[rng.integers(len(good))])
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(len(text) + 1))
            match rng.integers(4):
                case 0:
                    text[at:at] = bytes([rng.integers(48, 112)])
                case 1:
                    del text[at : at + rng.integers(1, 4)]
                case 2:
                    text[at : at + 1] = bytes([rng.integers(256)])
                case _:  # two numbers traded: sums often stay right
                    text[at : at + 2] = text[at : at + 2][::-1]
        try:
            mask = Masks.from_rle([{"size": [31, 17], "counts": bytes(text).decode("latin-1")}], (31, 17))
        except ConfigError:
            continue
        accepted += 1
        assert mask[0].sum() == mask.areas[0]
        assert mask[0].shape == (31, 17)
        assert mask.crop(0)[1].sum() == mask.areas[0]
    assert accepted > 50
