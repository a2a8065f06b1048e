"""Samples become batches: the same ones whatever the number of workers, and from any batch of an epoch on."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from rapidetr.core.errors import ConfigError, RapidetrError
from rapidetr.core.labels import LabelSpace
from rapidetr.core.preprocessing import Preprocessing
from rapidetr.data.mixing import Transform, augment
from rapidetr.data.presets import preset
from rapidetr.data.records import Dataset
from rapidetr.data.samples import Sample, check
from rapidetr.data.sampling import EpochOrder, Key
from rapidetr.data.sources import Items, ItemSource, RecordSource
from rapidetr.data.transforms import clip, resize
from rapidetr.pixels.prepare import normalization, normalize


class Truth(NamedTuple):
    """The n objects of one picture, n may be 0, field by field what the criterion's Target holds."""

    labels: Tensor  # [n] int64, rows of the class head
    boxes: Tensor  # [n, 4] float32: center x, center y, width, height in units of the picture
    masks: Tensor | None  # [n, H, W] bool


class TrainBatch(NamedTuple):
    """`pixels` float32 [B, 3, H, W], normalized as by `pixels.prepare`; one Truth and one source for each picture."""

    pixels: Tensor
    targets: tuple[Truth, ...]
    sources: tuple[str, ...]

    def resized(self, size_hw: tuple[int, int]) -> TrainBatch:
        """The same batch at the size of a multi-scale step: bilinear, no antialias; boxes are relative, masks stay as they are."""
        if self.pixels.shape[2:] == tuple(size_hw):
            return self
        return self._replace(pixels=F.interpolate(self.pixels, size=size_hw, mode="bilinear", align_corners=False))


class Packed(NamedTuple):
    """A batch on its way from a worker: few tensors, since each one takes a file handle."""

    pixels: Tensor
    labels: np.ndarray  # int64 [T], all objects of the batch
    boxes: np.ndarray  # float32 [T, 4]
    masks: Tensor | None  # bool [T, H, W]
    counts: list[int]
    sources: tuple[str, ...]


class Loader:
    """Training batches of a dataset, endlessly repeatable: `loader.epoch(3, start=17)` always begins with the same batch.

    `dataset`: a Dataset, or any map-style torch dataset as ItemSource describes, then with `labels`. `labels` belong to the
    model and give the rows of its class head; the classes must be those of the dataset. `transforms`: the name of a preset, or
    a sequence of callables (sample, rng) -> sample (see augment.py, mixing.py); what does not end at `size_hw` is stretched to it.
    `custom`, the user's own callable, comes last. With `workers` > 0 that many processes make batches ahead. `pin` keeps pixels where
    a CUDA device reads them while it computes.
    """

    def __init__(
        self,
        dataset: Dataset | Items,
        order: EpochOrder,
        size_hw: tuple[int, int],
        preprocessing: Preprocessing,
        *,
        labels: LabelSpace | None = None,
        transforms: str | Sequence[Transform] = "official",
        custom: Transform | None = None,
        masks: bool = False,
        rank: int = 0,
        workers: int = 0,
        cache_bytes: int = 0,
        start_method: str | None = None,
        pin: bool = False,
    ) -> None:
        source: RecordSource | ItemSource
        if isinstance(dataset, Dataset):
            source = RecordSource(dataset, masks=masks, cache_bytes=cache_bytes // max(workers, 1))
        elif labels is not None:
            source = ItemSource(dataset, labels, masks=masks)
        else:
            raise ConfigError(f"labels are missing: a {type(dataset).__name__} does not say what its classes are called; pass a LabelSpace")
        labels = labels or source.labels
        if labels.names != source.labels.names:
            raise ConfigError(f"the model has classes {list(labels.names)}, the dataset {list(source.labels.names)}; expected the same")
        if len(source) != order.images:
            raise ConfigError(f"the order is for {order.images} images, the dataset has {len(source)}; expected equally many")
        steps = tuple(preset(transforms, size_hw, masks=masks) if isinstance(transforms, str) else transforms)
        steps += () if custom is None else (custom, _Inside(len(labels.names)))
        self.order, self.rank, self.plan = order, rank, _Plan()
        self.maker = BatchMaker(source, steps, size_hw, preprocessing, np.array(labels.rows, np.int64), order.seed)
        self._torch_loader = DataLoader(
            cast(Any, self.maker),
            batch_sampler=self.plan,
            num_workers=workers,
            collate_fn=_as_it_is,
            persistent_workers=workers > 0,
            multiprocessing_context=start_method if workers else None,
            pin_memory=pin,
            generator=torch.Generator(),  # else each epoch would draw from the global one, which a resumed run restores
        )

    def __len__(self) -> int:
        """Batches of an epoch, on one rank."""
        return self.order.steps * self.order.accumulation

    def epoch(self, epoch: int, start: int = 0) -> Iterator[TrainBatch]:
        """The batches of an epoch from number `start` on; those before are not decoded. Errors are those of the sample at fault."""
        self.plan.keys = self.order.batches(epoch, self.rank, start)
        for packed in self._torch_loader:
            if isinstance(packed, RapidetrError):
                raise packed
            yield unpack(packed)


class _Plan:
    """The keys of the batches to come, exchanged between epochs under one torch loader, so that workers live on."""

    keys: list[list[Key]] = []

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.keys)

    def __len__(self) -> int:
        return len(self.keys)


def _as_it_is(made: Any) -> Any:
    return made


class _Inside:
    """What a user's transform gave, checked; boxes cut at the border, as all the others leave them."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return clip(check(sample, self.num_classes, "the last transform"))


class BatchMaker:
    """Makes a batch from its keys; the part of a loader that travels to workers."""

    def __init__(
        self,
        source: RecordSource | ItemSource,
        transforms: tuple[Transform, ...],
        size_hw: tuple[int, int],
        preprocessing: Preprocessing,
        rows: np.ndarray,
        seed: int,
    ) -> None:
        self.source, self.transforms, self.size_hw, self.rows, self.seed = source, transforms, size_hw, rows, seed
        self.mean, self.std = normalization(preprocessing, 3)

    def __getitems__(self, keys: list[Key]) -> Packed | RapidetrError:
        """The batch of `keys`, or the error of its first bad sample: raised in a worker, it would arrive as a traceback."""
        try:
            return self.pack([self.sample(key) for key in keys])
        except RapidetrError as problem:
            return problem

    def sample(self, key: Key) -> Sample:
        """The augmented sample of `key`, of the input size; depends on the run's seed and `key` alone."""
        rng = np.random.default_rng([1, self.seed, key.epoch, key.position])
        with seeded(int(rng.integers(2**32))):
            sample = augment(self.source(key.image), self.transforms, rng, self.pick)
        return resize(check(sample, len(self.rows), "the last transform"), self.size_hw)

    def pick(self, rng: np.random.Generator) -> Sample:
        return self.source(int(rng.integers(len(self.source))))

    def pack(self, samples: list[Sample]) -> Packed:
        pixels = np.empty((len(samples), 3, *self.size_hw), np.float32)
        for sample, target in zip(samples, pixels, strict=True):
            normalize(sample.pixels, target, self.mean, self.std)
        corners = np.concatenate([s.boxes_xyxy_px for s in samples]) / np.array(self.size_hw[::-1] * 2, np.float32)
        boxes = np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1)
        masks = [s.masks for s in samples if s.masks is not None]
        return Packed(
            torch.from_numpy(pixels),
            self.rows[np.concatenate([s.class_ids for s in samples])],
            boxes,
            torch.from_numpy(np.concatenate(masks)) if masks else None,
            [len(s.class_ids) for s in samples],
            tuple(s.source for s in samples),
        )


def unpack(packed: Packed) -> TrainBatch:
    """Splits the objects of a batch by picture."""
    labels, boxes = torch.from_numpy(packed.labels).split(packed.counts), torch.from_numpy(packed.boxes).split(packed.counts)
    masks = [None] * len(labels) if packed.masks is None else packed.masks.split(packed.counts)
    return TrainBatch(packed.pixels, tuple(map(Truth, labels, boxes, masks)), packed.sources)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within it the global generators start from `seed`, since a user's code may draw from them; after it they are as before."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
