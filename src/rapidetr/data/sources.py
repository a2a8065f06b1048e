"""Where samples come from: our records, or any map-style dataset of the user."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from rapidetr.core.errors import DatasetError
from rapidetr.core.labels import LabelSpace
from rapidetr.core.masks import Masks
from rapidetr.data.jpeg import load_pixels
from rapidetr.data.records import Dataset
from rapidetr.data.samples import Sample, check
from rapidetr.data.transforms import clip, resize, resize_masks
from rapidetr.pixels.decode import decode

MASK_BYTES = 1 << 28  # of one picture; 60 objects in 12 megapixels would take 0.7 GB


class Items(Protocol):
    """What a `torch.utils.data.Dataset` of the map style has."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class RecordSource:
    """Samples of a Dataset: crowds left out, boxes clipped to the picture, objects without extent dropped.

    Up to `cache_bytes` of decoded pictures stay in memory (in each worker): the first ones seen, since every epoch asks for
    every picture once, and throwing some out for others would only lose hits.
    """

    def __init__(self, dataset: Dataset, *, masks: bool = False, cache_bytes: int = 0) -> None:
        self.images, self.labels, self.masks, self.free_bytes = dataset.images, dataset.labels, masks, cache_bytes
        self.cached: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.images)

    def __call__(self, index: int) -> Sample:
        record, pixels = self.images[index], self.pixels(index)
        sample = Sample(pixels, record.boxes_xyxy_px, record.class_ids, None, record.path)
        if self.masks:
            sample = with_masks(sample, record.masks(sample.size_hw))
        return clip(sample.keep(~record.crowd) if record.crowd.any() else sample)

    def pixels(self, index: int) -> np.ndarray:
        """uint8 [H, W, 3], read-only where it is cached."""
        if index in self.cached:
            return self.cached[index]
        pixels = as_bytes(load_pixels(self.images[index].path))
        if pixels.nbytes <= self.free_bytes:
            self.free_bytes -= pixels.nbytes
            pixels.flags.writeable = False
            self.cached[index] = pixels
        return pixels


def with_masks(sample: Sample, masks: Masks) -> Sample:
    """The sample with its masks, made smaller where they would take more than MASK_BYTES: transforms hold several copies of them."""
    need = len(masks) * sample.pixels.shape[0] * sample.pixels.shape[1]
    if need <= MASK_BYTES:
        return replace(sample, masks=masks.dense())
    part = math.sqrt(MASK_BYTES / need)
    height, width = (max(1, int(side * part)) for side in sample.size_hw)
    small = [resize_masks(masks[i : i + 1].dense(), (height, width)) for i in range(len(masks))]
    return replace(resize(sample, (height, width)), masks=np.concatenate(small))


class ItemSource:
    """Samples of a dataset whose items are (image, target); DatasetError names the item that breaks the contract.

    image: a PIL image, an RGB array uint8 [H, W, 3] or a float tensor [3, H, W] in 0..1 · target: a dict of `boxes` [n, 4]
    as x0, y0, x1, y1 in pixels, `labels` [n] as class indices 0..K-1 of `labels` and, for segmentation, `masks` [n, H, W].
    """

    def __init__(self, items: Items, labels: LabelSpace, *, masks: bool = False) -> None:
        self.items, self.labels = items, labels
        self.keys = ("boxes", "labels", "masks") if masks else ("boxes", "labels")

    def __len__(self) -> int:
        return len(self.items)

    def __call__(self, index: int) -> Sample:
        item, name = self.items[index], f"item {index} of the dataset"
        if not (isinstance(item, tuple | list) and len(item) == 2 and isinstance(item[1], dict) and set(self.keys) <= set(item[1])):
            raise DatasetError(f"{name} is {describe(item)}; expected (image, {{{', '.join(self.keys)}}})")
        pixels = as_bytes(decode(item[0]).pixels)
        boxes, class_ids, *masks = (np.asarray(item[1][key]) for key in self.keys)
        if not len(class_ids):  # an empty list says nothing about shape and type
            boxes, class_ids, masks = np.zeros((0, 4)), np.zeros(0, np.int64), [np.zeros((0, *pixels.shape[:2])) for _ in masks]
        if class_ids.dtype.kind not in "iu":
            raise DatasetError(f"{name} has labels of type {class_ids.dtype}; expected whole numbers, class indices")
        sample = Sample(pixels, boxes.astype(np.float32), class_ids.astype(np.int64), masks[0].astype(bool) if masks else None, name)
        return clip(check(sample, len(self.labels), name))


def as_bytes(pixels: np.ndarray) -> np.ndarray:
    """uint8 of a picture that may be float in 0..1."""
    return pixels if pixels.dtype == np.uint8 else np.rint(pixels * np.float32(255)).astype(np.uint8)


def describe(item: object) -> str:
    """What an item of a dataset is, in a few words."""
    if not isinstance(item, tuple | list):
        return f"a {type(item).__name__}"
    parts = (f"{{{', '.join(map(str, part))}}}" if isinstance(part, dict) else type(part).__name__ for part in item)
    return f"({', '.join(parts)})"
