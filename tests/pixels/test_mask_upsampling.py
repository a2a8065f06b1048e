"""Masks at the size of the picture: torch's resize is the oracle."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from rapidetr.core.errors import ConfigError
from rapidetr.core.masks import Masks
from rapidetr.core.outputs import Geometry
from rapidetr.pixels.masks import upsample_masks


def blobs(count: int, height: int, width: int, roughness: float, seed: int = 0) -> np.ndarray:
    """float32 [N, h, w]: ellipses, some over the border, with noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    center, radius = rng.random((count, 2, 1, 1)) * [[[height]], [[width]]], rng.random((count, 2, 1, 1)) * 0.4 * max(height, width) + 1
    inside = 4 - 4 * (((y - center[:, 0]) / radius[:, 0]) ** 2 + ((x - center[:, 1]) / radius[:, 1]) ** 2)
    return (inside + roughness * rng.standard_normal(inside.shape)).astype(np.float32)


def resized(logits: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    out = torch.nn.functional.interpolate(torch.from_numpy(logits)[:, None], size=size_hw, mode="bilinear", align_corners=False)
    return out[:, 0].numpy()


@pytest.mark.parametrize(
    ("grid", "size"),
    [
        ((16, 16), (96, 120)),
        ((78, 78), (480, 333)),
        ((16, 24), (7, 9)),
        ((9, 5), (9, 5)),
        ((24, 24), (200, 10)),
        ((1, 1), (4, 6)),
        ((5, 7), (1, 1)),
    ],
)
@pytest.mark.parametrize("roughness", [0.0, 0.5, 30.0])
def test_masks_are_those_of_torch(grid: tuple[int, int], size: tuple[int, int], roughness: float) -> None:
    logits = blobs(6, *grid, roughness)
    expected = resized(logits, size)
    masks = upsample_masks(logits, range(6), Geometry(size))
    dense = masks.dense()
    # torch fuses the multiplications with the addition, so a value that is zero but for rounding may have either sign
    undecided = np.abs(expected) <= 4 * np.finfo(np.float32).eps * np.abs(logits).max()
    assert np.array_equal(dense | undecided, (expected > 0) | undecided)
    assert undecided.mean() < 0.01
    assert masks == Masks.from_dense(dense)  # the same run lengths as everywhere, no empty and no touching runs


def test_full_empty_and_zero_masks() -> None:
    logits = np.stack([np.full((4, 4), 3), np.full((4, 4), -3), np.zeros((4, 4))]).astype(np.float32)
    assert upsample_masks(logits, [0, 1, 2], Geometry((30, 20))).areas.tolist() == [600, 0, 0]


def test_zero_is_not_positive() -> None:
    logits = np.zeros((2, 6, 6), np.float32)  # a network that clips gives whole areas of exactly zero
    logits[0, 2:4, 3], logits[1, 1:5, 1:5] = 1, [[-2, 0, 0, 3]]
    masks = upsample_masks(logits, [0, 1], Geometry((30, 40)))
    assert np.array_equal(masks.dense(), resized(logits, (30, 40)) > 0)


def test_a_query_chosen_twice_gives_its_mask_twice() -> None:
    logits = blobs(3, 8, 8, 0)
    masks = upsample_masks(logits, [2, 0, 2], Geometry((20, 20)))
    assert np.array_equal(masks.counts[0], masks.counts[2])
    assert np.array_equal(masks[1], resized(logits, (20, 20))[0] > 0)


@pytest.mark.parametrize("offset", [(0, 0), (13, 7), (20, 30)])
def test_the_mask_of_a_tile_lies_where_the_tile_lies(offset: tuple[int, int]) -> None:
    logits = blobs(5, 12, 12, 1.0)
    inside = upsample_masks(logits, range(5), Geometry((40, 50)))
    placed = upsample_masks(logits, range(5), Geometry((40, 50), offset, (60, 80)))
    assert placed == inside.moved((60, 80), offset)


def test_values_that_are_not_finite_are_refused() -> None:
    logits = blobs(2, 8, 8, 0)
    logits[1, 3, 3] = np.nan
    assert len(upsample_masks(logits, [0], Geometry((20, 20)))) == 1
    with pytest.raises(
        ConfigError, match=r"^the network returned mask logits that are not finite \(query 1\); try float32, or check the weights$"
    ):
        upsample_masks(logits, [0, 1], Geometry((20, 20)))


MEASURE = """
import resource
import numpy as np
from rapidetr.core.outputs import Geometry
from rapidetr.pixels.masks import upsample_masks

rng, (y, x) = np.random.default_rng(0), np.mgrid[:192, :192]
logits = np.empty((300, 192, 192), np.float32)
for mask in logits:
    (cy, cx), (ry, rx) = rng.random(2) * 192, rng.random(2) * 60 + 3
    mask[:] = 4 - 4 * (((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2) + ROUGHNESS * rng.standard_normal((192, 192))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
masks = upsample_masks(logits, range(300), Geometry((3000, 4000)))
assert len(masks) == 300 and masks.areas.max() > 100_000
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("roughness", "limit_mb"), [(0.5, 50), (30, 400)])
def test_300_masks_of_a_12_megapixel_photo_fit_into_little_memory(roughness: float, limit_mb: int) -> None:
    """In a process of its own, so that the peak is that of the masks. Dense they need 3.6 GB as bool and 14.4 GB as float.

    Measured: 11 MB for objects with rough outlines, 190 MB for pixel noise, of which 168 MB are the run lengths.
    """
    code = MEASURE.replace("ROUGHNESS", str(roughness))
    grown = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert grown < limit_mb
