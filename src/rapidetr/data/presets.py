"""Named lists of transforms, each for a kind of pictures."""

from __future__ import annotations

from collections.abc import Callable

from rapidetr.core.errors import ConfigError
from rapidetr.data.augment import (
    Affine,
    Blur,
    ColorJitter,
    Flip,
    FlipVertical,
    Noise,
    OfficialResize,
    Plain,
    RandomCrop,
    Resize,
    Turn,
)
from rapidetr.data.mixing import CopyPaste, Mixing, MixUp, Mosaic, Sometimes

Transforms = tuple[Plain | Mixing, ...]


def preset(name: str, size_hw: tuple[int, int], *, masks: bool = False) -> Transforms:
    """The transforms called `name` that end at `size_hw`; `masks` says whether samples have them. ConfigError: unknown name."""
    if name not in PRESETS:
        raise ConfigError(f"augmentation is {name!r}; expected one of {', '.join(PRESETS)}")
    return PRESETS[name](size_hw, masks)


def official(size_hw: tuple[int, int], masks: bool) -> Transforms:
    """The recipe of the published weights."""
    return OfficialResize(size_hw), Flip()


def aerial(size_hw: tuple[int, int], masks: bool) -> Transforms:
    """Small objects without up and down: closer windows, quarter turns."""
    return RandomCrop(0.4), Turn(), Resize(size_hw), Flip(), ColorJitter(0.2, 0.2, 0.2, 0.02)


def industrial(size_hw: tuple[int, int], masks: bool) -> Transforms:
    """A steady camera over fine texture: small shifts, little color, some blur and noise."""
    moved = Sometimes(0.5, Affine(5.0, (0.9, 1.1), 0.0, 0.05))
    seen = (ColorJitter(0.15, 0.15, 0.0), Sometimes(0.2, Blur(1.0)), Sometimes(0.2, Noise(8.0)))
    return moved, Resize(size_hw), Flip(), FlipVertical(), *seen


def small_data(size_hw: tuple[int, int], masks: bool) -> Transforms:
    """A few hundred pictures: as much variety as they can give."""
    pasted = (Sometimes(0.3, CopyPaste()),) if masks else ()
    mixed = (Sometimes(0.3, Mosaic(size_hw)), Sometimes(0.1, MixUp()))
    return *pasted, *mixed, Sometimes(0.5, Affine()), RandomCrop(0.6), Resize(size_hw), Flip(), ColorJitter(0.3, 0.3, 0.4, 0.02)


def render(size_hw: tuple[int, int], masks: bool) -> Transforms:
    """Rendered scenes, which bring their own variety."""
    return RandomCrop(0.6), Resize(size_hw), Flip(), ColorJitter(0.25, 0.25, 0.25)


def none(size_hw: tuple[int, int], masks: bool) -> Transforms:
    """Nothing but the input size."""
    return (Resize(size_hw),)


PRESETS: dict[str, Callable[[tuple[int, int], bool], Transforms]] = {
    "official": official, "aerial": aerial, "industrial": industrial, "small-data": small_data, "render": render, "none": none,
}  # fmt: skip
