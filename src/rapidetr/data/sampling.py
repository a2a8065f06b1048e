"""Which pictures an epoch shows and in which order; how ranks share them; which input size a step has."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rapidetr.core.errors import ConfigError
from rapidetr.data.records import ImageRecord

MIN_STEPS = 5  # optimizer steps of the shortest epoch: a smaller set is drawn from with replacement


class Key(NamedTuple):
    """Picture number `image` at `position` of an epoch: all that the chance in a sample depends on, besides the run's seed."""

    epoch: int
    position: int
    image: int


@dataclass(frozen=True, eq=False)
class EpochOrder:
    """The order of every epoch, over all ranks; one optimizer step takes `batch` x `accumulation` x `world` pictures.

    As the official sampler does: shuffled; pictures that fill the last step are drawn once, from seed 0, and are the same in
    each epoch. `repeats` float [images], at least 1, shows picture i that many times an epoch (see `repeat_factors`).
    """

    images: int
    batch: int
    accumulation: int = 1
    world: int = 1
    seed: int = 0
    repeats: np.ndarray | None = None

    def __post_init__(self) -> None:
        if min(self.images, self.batch, self.accumulation, self.world) < 1:
            have = f"{self.images} images, batch {self.batch}, accumulation {self.accumulation}, world {self.world}"
            raise ConfigError(f"{have}; expected at least 1 of each")
        if self.repeats is not None and (self.repeats.shape != (self.images,) or self.repeats.min() < 1):
            raise ConfigError(f"repeats are {list(self.repeats.shape)}; expected one number of at least 1 for each of {self.images} images")

    @property
    def step_images(self) -> int:
        return self.batch * self.accumulation * self.world

    @property
    def shown(self) -> int:
        """Pictures of an epoch before the last step is filled."""
        return self.images if self.repeats is None else int(np.ceil(self.repeats.sum()))

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch."""
        return max(MIN_STEPS, -(-self.shown // self.step_images))

    def indices(self, epoch: int) -> np.ndarray:
        """int64 [steps x step_images]: the pictures of an epoch, in order."""
        rng = np.random.default_rng([0, self.seed, epoch])
        if self.shown < MIN_STEPS * self.step_images:
            share = None if self.repeats is None else self.repeats / self.repeats.sum()
            return rng.choice(self.images, MIN_STEPS * self.step_images, p=share)
        fill = np.random.default_rng(0).integers(self.images, size=-self.shown % self.step_images)
        return rng.permutation(np.concatenate([self._repeated(rng), fill]))

    def _repeated(self, rng: np.random.Generator) -> np.ndarray:
        """int64 [shown]: each picture floor(r) or ceil(r) times by systematic sampling, so that epochs are equally long."""
        if self.repeats is None:
            return np.arange(self.images)
        ends = np.cumsum(self.repeats)
        marks = (np.arange(self.shown) + rng.random()) * (ends[-1] / self.shown)
        return np.minimum(np.searchsorted(ends, marks, side="right"), self.images - 1)

    def batches(self, epoch: int, rank: int = 0, start: int = 0) -> list[list[Key]]:
        """The batches of one rank from number `start` on, steps x accumulation in an epoch.

        In every batch rank r takes the r-th part, so W ranks with batch b see together what one rank with batch W x b sees.
        """
        indices = self.indices(epoch)
        begins = range(rank * self.batch, len(indices), self.batch * self.world)[start:]
        return [[Key(epoch, p, int(indices[p])) for p in range(begin, begin + self.batch)] for begin in begins]


def repeat_factors(images: Sequence[ImageRecord], threshold: float) -> np.ndarray:
    """float64 [images]: max over the classes of a picture of max(1, sqrt(threshold / f)), f the share of pictures with it.

    Repeat factor sampling of Gupta et al., LVIS, CVPR 2019, section 4.2; pictures without objects count once.
    """
    classes = [np.unique(record.class_ids[~record.crowd]) for record in images]
    share = np.bincount(np.concatenate(classes)) / len(images) if classes else np.zeros(0)
    factors = np.sqrt(threshold / np.maximum(share, 1e-12))  # a class without pictures is looked up by none
    return np.array([max(1.0, *factors[ids].tolist()) if len(ids) else 1.0 for ids in classes])


def class_weights(counts: np.ndarray, power: float = 0.5) -> np.ndarray:
    """float64 [K]: proportional to counts ** -power, with mean 1 over all objects; classes without objects weigh 1."""
    seen = counts > 0
    weights = np.ones(len(counts))
    weights[seen] = counts[seen] ** -float(power)
    weights[seen] *= counts[seen].sum() / max((weights * counts)[seen].sum(), 1e-12)
    return weights


def multi_scale_sizes(divisor: int, size_hw: tuple[int, int], *, expanded: bool = True) -> tuple[tuple[int, int], ...]:
    """Sizes around `size_hw`, rising: its shorter side k x `divisor` becomes (k + o) x `divisor`, o = -5..5, or -3..4.

    The longer side keeps the proportion as nearly as `divisor` allows; sizes below 2 x `divisor` are left out.
    """
    short = min(size_hw) // divisor
    sides = [short + offset for offset in (range(-5, 6) if expanded else range(-3, 5))]
    return tuple(
        (round(side * size_hw[0] / min(size_hw)) * divisor, round(side * size_hw[1] / min(size_hw)) * divisor)
        for side in sides
        if side >= 2
    )


def size_of_step(step: int, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The input size of optimizer step `step`; every rank finds the same one."""
    return random.Random(step).choice(sizes)
