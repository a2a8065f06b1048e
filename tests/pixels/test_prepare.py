"""Pictures to network input: golden values, Pillow's filter, the torch twin."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rapidetr.core.errors import ConfigError, ImageError
from rapidetr.core.outputs import Geometry
from rapidetr.core.preprocessing import Preprocessing
from rapidetr.pixels.prepare import prepare
from rapidetr.pixels.resample import neighbors
from rapidetr.runtime.prepare_torch import prepare as prepare_torch

OFFICIAL = Preprocessing.official()
MEAN, STD = np.float32(OFFICIAL.mean), np.float32(OFFICIAL.std)
SHAPES = [((48, 64), (36, 40)), ((30, 41), (64, 72)), ((300, 20), (32, 32)), ((5, 5), (5, 5)), ((7, 9), (7, 20)), ((1, 1), (4, 6))]


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize(("name", "height", "width"), [("down", 97, 131), ("up", 30, 41)])
def test_golden_preprocessing(golden: Path, name: str, height: int, width: int) -> None:
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    picture = ((7 * y + 13 * x + 31 * c + (x * y) % 17) % 256).astype(np.uint8)
    batch = prepare([picture], (64, 64), OFFICIAL, filter="bilinear")
    with np.load(golden / "golden_preprocess.npz") as expected:
        assert np.abs(batch.pixels[0] - expected[name]).max() <= 1e-6  # the tolerance of the specification
    assert batch.pixels.dtype == np.float32
    assert batch.pixels.flags.c_contiguous
    assert batch.filter == "bilinear"
    assert batch.geometries == (Geometry(image_hw=(height, width)),)


@pytest.mark.parametrize(("source", "size"), SHAPES)
@pytest.mark.parametrize("filter", ["bilinear", "bilinear-antialias"])
@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_numpy_and_torch_prepare_alike(source: tuple[int, int], size: tuple[int, int], filter: str, kind: str) -> None:
    pictures = [noise(*source), noise(source[1], source[0])]
    if kind == "float32":
        pictures = [p.astype(np.float32) / 255 for p in pictures]
    ours = prepare(pictures, size, OFFICIAL, filter=filter)
    twin, geometries = prepare_torch(pictures, size, OFFICIAL, filter=filter)
    assert np.abs(ours.pixels - twin.numpy()).max() <= 1e-6  # both round in float32; values reach 2.6
    assert geometries == ours.geometries


@pytest.mark.parametrize("length_in", [3, 192, 641, 4032])
@pytest.mark.parametrize("length_out", [5, 384, 3999])
def test_sample_positions_are_those_of_torch(length_in: int, length_out: int) -> None:
    row = np.random.default_rng(0).random((1, 1, 1, length_in), np.float32)
    low, high, weight = neighbors(length_in, length_out)
    ours = row[0, 0, 0, low] * (1 - weight) + row[0, 0, 0, high] * weight
    theirs = torch.nn.functional.interpolate(torch.from_numpy(row), size=(1, length_out), mode="bilinear", align_corners=False)
    assert np.abs(ours - theirs.numpy()[0, 0, 0]).max() <= 1.2e-7  # one unit in the last place; a position rounded twice shows 3e-6


@pytest.mark.parametrize(("source", "size"), SHAPES)
def test_antialias_is_pillows_filter_to_the_last_bit(source: tuple[int, int], size: tuple[int, int]) -> None:
    picture = noise(*source)
    resized = np.asarray(Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.BILINEAR))
    expected = ((resized.astype(np.float32) / np.float32(255) - MEAN) / STD).transpose(2, 0, 1)
    assert np.array_equal(prepare([picture], size, OFFICIAL, filter="bilinear-antialias").pixels[0], expected)


def test_antialias_of_a_float_picture_averages_what_it_skips() -> None:
    picture = np.zeros((40, 40, 3), np.float32)
    picture[::2] = 1  # stripes: four neighbors would see them, the antialiased filter sees gray
    view = prepare([picture], (10, 10), OFFICIAL, filter="bilinear-antialias").pixels[0]
    inner = view[:, 1:-1] * STD[:, None, None] + MEAN[:, None, None]
    assert np.abs(inner - 0.5).max() < 0.02  # a triangle 8 rows wide over stripes of one row weighs them within 2 percent


def test_a_picture_of_the_right_size_is_only_normalized() -> None:
    picture = noise(32, 48)
    views = [prepare([picture], (32, 48), OFFICIAL, filter=f).pixels for f in ("bilinear", "bilinear-antialias")]
    assert np.array_equal(*views)
    assert np.array_equal(views[0][0], ((picture / np.float32(255) - MEAN) / STD).transpose(2, 0, 1))


@pytest.mark.parametrize("filter", ["bilinear", "bilinear-antialias"])
def test_a_neighbor_in_the_batch_changes_nobody(filter: str) -> None:
    pictures = [noise(40, 30), noise(25, 70), noise(32, 32)]
    together = prepare(pictures, (32, 32), OFFICIAL, filter=filter).pixels
    alone = [prepare([p], (32, 32), OFFICIAL, filter=filter).pixels[0] for p in pictures]
    assert np.array_equal(together, np.stack(alone))


@pytest.mark.parametrize("filter", ["bilinear", "bilinear-antialias"])
@pytest.mark.parametrize("channels", [1, 4, 5])
def test_mean_and_std_repeat_over_other_channel_counts(filter: str, channels: int) -> None:
    picture = noise(30, 40, channels)
    view = prepare([picture], (20, 24), OFFICIAL, filter=filter).pixels[0]
    for c in range(channels):
        as_rgb = prepare([np.repeat(picture[:, :, c : c + 1], 3, axis=2)], (20, 24), OFFICIAL, filter=filter).pixels[0]
        assert np.array_equal(view[c], as_rgb[c % 3])


def test_a_view_into_a_larger_picture_gives_the_same_as_its_copy() -> None:
    view = noise(90, 100)[10:70, 20:90]
    assert np.array_equal(*(prepare([v], (32, 32), OFFICIAL, filter="bilinear").pixels for v in (view, view.copy())))


def test_bad_requests_say_what_was_expected() -> None:
    picture = noise(8, 8)
    with pytest.raises(ConfigError, match=r"^filter is 'nearest'; expected one of bilinear, bilinear-antialias$"):
        prepare([picture], (8, 8), OFFICIAL, filter="nearest")
    with pytest.raises(ConfigError, match=r"^0 pictures to a size of 8x8; expected at least one picture and one pixel$"):
        prepare([], (8, 8), OFFICIAL, filter="bilinear")
    with pytest.raises(ImageError, match=r"^a picture is float64 .*expected uint8 or float32 "):
        prepare([picture.astype(np.float64)], (8, 8), OFFICIAL, filter="bilinear")
    with pytest.raises(ImageError, match=r"^pictures of one batch have \[1, 3\] channels; expected equally many$"):
        prepare([picture, picture[:, :, :1]], (8, 8), OFFICIAL, filter="bilinear")
    with pytest.raises(ConfigError, match=r"^geometries do not match the pictures"):
        prepare([picture], (8, 8), OFFICIAL, filter="bilinear", geometries=[Geometry((8, 9))])
