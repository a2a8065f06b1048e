"""The rendered world as a COCO dataset on disk."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from rapidetr.core.errors import ConfigError
from rapidetr.core.labels import LabelSpace
from rapidetr.data.write import Scene as NamedScene
from rapidetr.data.write import write_coco
from rapidetr.demo.world import WORLD, Variation, render_scene


def scene_seed(seed: int, split: str, index: int) -> int:
    """The seed of scene `index` of a split: no two splits, seeds or places share one, whatever the number of images."""
    return int(np.random.SeedSequence([seed, zlib.crc32(split.encode()), index]).generate_state(1, np.uint64)[0])


def write_dataset(
    path: str | Path,
    num_images: int,
    seed: int,
    *,
    split: str | Mapping[str, float] = "train",
    size_hw: tuple[int, int] = (224, 224),
    variation: Variation | None = None,
) -> Path:
    """The folder `path`, now with `num_images` rendered scenes as JPEG files and a COCO file for each split.

    `split` names the one split to write, or several with their shares: {"train": 0.8, "valid": 0.1, "test": 0.1} (rounded,
    at least one image each). Layout: <path>/<split>/_annotations.coco.json beside its pictures. Masks are run lengths, so
    holes stay holes. ConfigError for no images.
    """
    if num_images < 1:
        raise ConfigError(f"num_images is {num_images}; expected at least 1")
    names = (variation or WORLD).classes
    labels = LabelSpace.contiguous(names, dataset_ids=range(1, len(names) + 1))
    shares = {split: 1.0} if isinstance(split, str) else split
    for name, share in shares.items():
        write_coco(path, name, _scenes(name, max(1, round(num_images * share)), seed, size_hw, variation), labels)
    return Path(path)


def _scenes(split: str, num_images: int, seed: int, size_hw: tuple[int, int], variation: Variation | None) -> Iterator[NamedScene]:
    for index in range(num_images):
        scene = render_scene(scene_seed(seed, split, index), size_hw=size_hw, variation=variation)
        yield f"scene_{index:06}.jpg", scene.pixels, scene.boxes_xyxy_px, scene.class_ids, scene.masks
