"""Transforms that take several pictures: besides sample and rng they get `pick`, which draws another sample of the dataset."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator
from PIL import Image

from rapidetr.core.errors import ConfigError
from rapidetr.data.augment import MIN_VISIBLE, Plain, crop_somewhere, settle
from rapidetr.data.samples import Sample
from rapidetr.data.transforms import enclose_masks, flip, resize, tighten

Pick = Callable[[Generator], Sample]


class Mixing(ABC):
    """A transform that may ask for other pictures."""

    @abstractmethod
    def __call__(self, sample: Sample, rng: Generator, pick: Pick) -> Sample: ...


Transform = Plain | Mixing


def augment(sample: Sample, transforms: Sequence[Transform], rng: Generator, pick: Pick) -> Sample:
    """The sample after all transforms in their order."""
    for transform in transforms:
        sample = transform(sample, rng, pick) if isinstance(transform, Mixing) else transform(sample, rng)
    return sample


@dataclass(frozen=True)
class Sometimes(Mixing):
    """`transform` with probability `chance`; mixing, since the transform may be."""

    chance: float
    transform: Transform

    def __call__(self, sample: Sample, rng: Generator, pick: Pick) -> Sample:
        return augment(sample, (self.transform,), rng, pick) if rng.random() < self.chance else sample


@dataclass(frozen=True)
class Mosaic(Mixing):
    """Four pictures around a point near the middle, each filling its corner of `size_hw` (Bochkovskiy et al., YOLOv4, 2020)."""

    size_hw: tuple[int, int]

    def __call__(self, sample: Sample, rng: Generator, pick: Pick) -> Sample:
        height, width = self.size_hw
        y, x = round(height * rng.uniform(0.3, 0.7)), round(width * rng.uniform(0.3, 0.7))
        corners = [(0, 0, y, x), (0, x, y, width), (y, 0, height, x), (y, x, height, width)]
        pixels = np.empty((height, width, 3), np.uint8)
        tiles = []
        for k, (top, left, bottom, right) in enumerate(corners):
            tile = fill_corner(pick(rng) if k else sample, rng, (bottom - top, right - left))
            pixels[top:bottom, left:right] = tile.pixels
            tiles.append(place(tile, self.size_hw, top, left))
        return join(replace(sample, pixels=pixels), tiles)


def fill_corner(sample: Sample, rng: Generator, size_hw: tuple[int, int]) -> Sample:
    """A window with the proportions of `size_hw` and 60 to 100 % of the largest such one, brought to that size."""
    fit = min(have / want for have, want in zip(sample.size_hw, size_hw, strict=True)) * rng.uniform(0.6, 1)
    window = [min(have, max(1, round(want * fit))) for have, want in zip(sample.size_hw, size_hw, strict=True)]
    return resize(settle(crop_somewhere(sample, rng, window)), size_hw)


def place(sample: Sample, size_hw: tuple[int, int], top: int, left: int) -> Sample:
    """The objects (not the pixels) of a picture that lies at (top, left) of a larger one of `size_hw`."""
    masks, (height, width) = None, sample.size_hw
    if sample.masks is not None:
        masks = np.zeros((len(sample.masks), *size_hw), bool)
        masks[:, top : top + height, left : left + width] = sample.masks
    return replace(sample, boxes_xyxy_px=sample.boxes_xyxy_px + np.array([left, top] * 2, np.float32), masks=masks)


def join(sample: Sample, parts: Sequence[Sample]) -> Sample:
    """`sample` with the objects of `parts` instead of its own."""
    masks = [p.masks for p in parts if p.masks is not None]
    return replace(
        sample,
        boxes_xyxy_px=np.concatenate([p.boxes_xyxy_px for p in parts]),
        class_ids=np.concatenate([p.class_ids for p in parts]),
        masks=np.concatenate(masks) if masks else None,
    )


class MixUp(Mixing):
    """Two pictures laid over each other, with the objects of both (Zhang et al., mixup, 2018; for detection arXiv 1902.04103)."""

    def __call__(self, sample: Sample, rng: Generator, pick: Pick) -> Sample:
        other = resize(pick(rng), sample.size_hw)
        pixels = Image.blend(Image.fromarray(sample.pixels), Image.fromarray(other.pixels), float(rng.beta(8, 8)))
        return join(replace(sample, pixels=np.asarray(pixels)), (sample, other))


class CopyPaste(Mixing):
    """Some objects of another picture, cut out along their masks and pasted over this one (Ghiasi et al., CVPR 2021)."""

    def __call__(self, sample: Sample, rng: Generator, pick: Pick) -> Sample:
        other = pick(rng)
        if sample.masks is None or other.masks is None:
            raise ConfigError(
                "copy-paste cuts objects out along their masks, but there are none; train a segmentation model or leave it out"
            )
        chosen = rng.random(len(other.class_ids)) < 0.5
        if not chosen.any():
            return sample
        fit = min(have / its for have, its in zip(sample.size_hw, other.size_hw, strict=True)) * rng.uniform(0.4, 1)
        other = resize(other.keep(chosen), (max(1, int(other.size_hw[0] * fit)), max(1, int(other.size_hw[1] * fit))))
        if rng.random() < 0.5:
            other = flip(other)
        top, left = (int(rng.integers(have - its + 1)) for have, its in zip(sample.size_hw, other.size_hw, strict=True))
        return paste(sample, other, top, left)


def paste(sample: Sample, other: Sample, top: int, left: int) -> Sample:
    """`sample` with the objects of `other` on top; its own objects lose what they cover, and go where most is covered."""
    new = place(other, sample.size_hw, top, left)
    assert new.masks is not None
    assert sample.masks is not None
    assert other.masks is not None
    window = slice(top, top + other.size_hw[0]), slice(left, left + other.size_hw[1])
    covered = other.masks.any(0)
    pixels, masks = sample.pixels.copy(), sample.masks.copy()
    pixels[window][covered] = other.pixels[covered]
    masks[:, *window] &= ~covered
    before, after = (np.asarray(m.sum((1, 2))) for m in (sample.masks, masks))
    boxes = np.where((after < before)[:, None], enclose_masks(masks), sample.boxes_xyxy_px)
    old = replace(sample, pixels=pixels, boxes_xyxy_px=boxes, masks=masks).keep((after > 0) & (after >= MIN_VISIBLE * before))
    return join(old, (old, tighten(new.keep(np.asarray(new.masks.any((1, 2)))))))
