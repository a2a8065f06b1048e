"""Transforms with chance: small callables (sample, rng) -> sample. All chance comes from `rng`, so a seed fixes the outcome."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageFilter

from rapidetr.data.samples import Sample
from rapidetr.data.transforms import clip, crop, flip, flip_vertical, resize, tighten, turn, warp

Plain = Callable[[Sample, Generator], Sample]
MIN_VISIBLE = 0.2  # of an object's box, or of its mask where another covers it; with less in sight it is no example
MOST_THIN = 20  # one side of a picture to the other
GRAY = (114, 114, 114)
LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Resize:
    size_hw: tuple[int, int]

    def __call__(self, sample: Sample, rng: Generator) -> Sample:
        return resize(sample, self.size_hw)


@dataclass(frozen=True)
class OfficialResize:
    """The official recipe: half of the time the whole picture, else a window of 384 to 600 pixels of a smaller copy.

    The window has the proportions of `size_hw`; officially both are square. Of pictures thinner than MOST_THIN it is always the whole:
    the copy has its short side given, and its long one would take any memory.
    """

    size_hw: tuple[int, int]

    def __call__(self, sample: Sample, rng: Generator) -> Sample:
        if rng.random() < 0.5 or max(sample.size_hw) > MOST_THIN * min(sample.size_hw):
            return resize(sample, self.size_hw)
        short, sides = int(rng.choice([400, 500, 600])), sample.size_hw
        sample = resize(sample, (short * sides[0] // min(sides), short * sides[1] // min(sides)))
        unit = min(self.size_hw)
        most = min(600, *(have * unit // want for have, want in zip(sample.size_hw, self.size_hw, strict=True)))
        side = int(rng.integers(min(384, most), most + 1))
        return resize(clip(crop_somewhere(sample, rng, [max(1, side * want // unit) for want in self.size_hw])), self.size_hw)


def crop_somewhere(sample: Sample, rng: Generator, size_hw: Sequence[int]) -> Sample:
    top, left = (int(rng.integers(have - want + 1)) for have, want in zip(sample.size_hw, size_hw, strict=True))
    return crop(sample, top, left, (size_hw[0], size_hw[1]))


def settle(sample: Sample) -> Sample:
    """Objects that are mostly out of sight dropped, the boxes of the others drawn around what is left of their masks."""
    return tighten(clip(sample, MIN_VISIBLE))


@dataclass(frozen=True)
class RandomCrop:
    """A window with the proportions of the picture and `least` to 1 of its sides."""

    least: float = 0.6

    def __call__(self, sample: Sample, rng: Generator) -> Sample:
        share = rng.uniform(self.least, 1)
        return settle(crop_somewhere(sample, rng, [max(1, round(share * side)) for side in sample.size_hw]))


class Flip:
    """Left and right exchanged, half of the time."""

    def __call__(self, sample: Sample, rng: Generator) -> Sample:
        return flip(sample) if rng.random() < 0.5 else sample


class FlipVertical:
    """Top and bottom exchanged, half of the time."""

    def __call__(self, sample: Sample, rng: Generator) -> Sample:
        return flip_vertical(sample) if rng.random() < 0.5 else sample


class Turn:
    """None, one, two or three quarters, equally often; the sides of the picture may change places."""

    def __call__(self, sample: Sample, rng: Generator) -> Sample:
        for _ in range(int(rng.integers(4))):
            sample = turn(sample)
        return sample


@dataclass(frozen=True)
class Affine:
    """Turned by up to `degrees`, scaled, sheared by up to `shear` degrees and shifted by up to `shift` of the sides."""

    degrees: float = 10.0
    scale: tuple[float, float] = (0.8, 1.2)
    shear: float = 2.0
    shift: float = 0.1

    def __call__(self, sample: Sample, rng: Generator) -> Sample:
        angle, lean_x, lean_y = np.radians(rng.uniform(-1, 1, 3) * [self.degrees, self.shear, self.shear])
        size = rng.uniform(*self.scale)
        height, width = sample.size_hw
        move = np.eye(3)
        move[:2, :2] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        move[:2, :2] = size * move[:2, :2] @ [[1, math.tan(lean_x)], [math.tan(lean_y), 1]]
        middle = np.array([width / 2, height / 2])
        move[:2, 2] = middle - move[:2, :2] @ middle + rng.uniform(-self.shift, self.shift, 2) * [width, height]
        return settle(warp(sample, move, GRAY))


@dataclass(frozen=True)
class ColorJitter:
    """Brightness, contrast and saturation times 1 - x to 1 + x, hue turned by up to `hue` of a circle, in one linear map."""

    brightness: float = 0.25
    contrast: float = 0.25
    saturation: float = 0.25
    hue: float = 0.0

    def __call__(self, sample: Sample, rng: Generator) -> Sample:
        wide = np.array([self.brightness, self.contrast, self.saturation, self.hue])
        bright, contrast, saturation, hue = (np.array([1, 1, 1, 0]) + rng.uniform(-1, 1, 4) * wide).tolist()
        mean = float(sample.pixels[::8, ::8].reshape(-1, 3).mean(0) @ LUMA)  # every 64th pixel is enough for the level
        colors = bright * contrast * (saturation * turn_hue(2 * math.pi * hue) + (1 - saturation) * np.tile(LUMA, (3, 1)))
        table = np.column_stack([colors, np.full(3, bright * mean * (1 - contrast))])
        picture = Image.fromarray(sample.pixels).convert("RGB", tuple(table.ravel().tolist()))
        return replace(sample, pixels=np.asarray(picture))


def turn_hue(angle: float) -> np.ndarray:
    """[3, 3]: RGB turned about the gray axis (Rodrigues' formula); gray stays gray."""
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    return np.asarray(math.cos(angle) * np.eye(3) + (1 - math.cos(angle)) / 3 + math.sin(angle) * cross)


@dataclass(frozen=True)
class Blur:
    """Gaussian blur of up to `radius_px`."""

    radius_px: float = 1.5

    def __call__(self, sample: Sample, rng: Generator) -> Sample:
        blurred = Image.fromarray(sample.pixels).filter(ImageFilter.GaussianBlur(rng.uniform(0, self.radius_px)))
        return replace(sample, pixels=np.asarray(blurred))


@dataclass(frozen=True)
class Noise:
    """Normal noise of up to `deviation` of 255 levels, each channel by itself."""

    deviation: float = 10.0

    def __call__(self, sample: Sample, rng: Generator) -> Sample:
        noise = rng.standard_normal(sample.pixels.shape, np.float32) * np.float32(rng.uniform(0, self.deviation))
        return replace(sample, pixels=np.clip(np.rint(sample.pixels + noise), 0, 255).astype(np.uint8))
