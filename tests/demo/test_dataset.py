"""The rendered world on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rapidetr.core.errors import ConfigError
from rapidetr.core.masks import Masks
from rapidetr.data.read import find_splits, read_dataset
from rapidetr.demo import VARIATION, WORLD, render_scene, scene_seed, write_dataset


def test_read_back_equals_the_scenes(tmp_path: Path) -> None:
    assert write_dataset(tmp_path, 5, 3) == tmp_path
    dataset = read_dataset(tmp_path)
    assert dataset.labels.names == WORLD.classes
    assert len(dataset) == 5
    for index, record in enumerate(dataset.images):
        scene = render_scene(scene_seed(3, "train", index))
        assert record.boxes_xyxy_px.tolist() == scene.boxes_xyxy_px.tolist()
        assert record.class_ids.tolist() == scene.class_ids.tolist()
        assert record.areas.tolist() == scene.masks.areas.tolist()
        assert record.masks() == scene.masks
        stored = np.asarray(Image.open(record.path), np.int16)
        assert np.abs(stored - scene.pixels).mean() < 8  # JPEG on sensor noise; another scene differs by 40 and more


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # its arrays set their shape in place
def test_annotations_fit_pycocotools(tmp_path: Path) -> None:
    mask = pytest.importorskip("pycocotools.mask")
    write_dataset(tmp_path, 2, 0, size_hw=(96, 128))
    content = json.loads((tmp_path / "train" / "_annotations.coco.json").read_text())
    assert [c["id"] for c in content["categories"]] == list(range(1, 9))
    for a in content["annotations"]:
        decoded = mask.decode(a["segmentation"]).astype(bool)
        assert decoded.sum() == a["area"]
        assert Masks.from_dense(decoded[None]) == Masks.from_rle([a["segmentation"]], (96, 128))
        assert mask.toBbox(a["segmentation"]).tolist() == a["bbox"]


def test_scene_i_does_not_depend_on_how_many(tmp_path: Path) -> None:
    write_dataset(tmp_path / "two", 2, 5)
    write_dataset(tmp_path / "four", 4, 5)
    for name in ("scene_000000.jpg", "scene_000001.jpg"):
        assert (tmp_path / "two/train" / name).read_bytes() == (tmp_path / "four/train" / name).read_bytes()
    first, second = (json.loads((tmp_path / p / "train/_annotations.coco.json").read_text())["annotations"] for p in ("two", "four"))
    assert second[: len(first)] == first


def test_splits_and_variation(tmp_path: Path) -> None:
    write_dataset(tmp_path, 10, 0, split={"train": 0.6, "valid": 0.3, "test": 0.01}, variation=VARIATION, size_hw=(96, 96))
    assert [*find_splits(tmp_path)] == ["train", "valid", "test"]
    splits = {name: read_dataset(tmp_path, name) for name in ("train", "valid", "test")}
    assert {name: len(d) for name, d in splits.items()} == {"train": 6, "valid": 3, "test": 1}
    assert splits["valid"].labels.names == VARIATION.classes
    pictures = [Path(r.path).read_bytes() for d in splits.values() for r in d.images]
    assert len(set(pictures)) == 10


def test_seeds_are_distinct_and_fixed() -> None:
    seeds = {scene_seed(s, split, i) for s in range(5) for split in ("train", "valid") for i in range(200)}
    assert len(seeds) == 2000
    assert scene_seed(0, "train", 0) == 4599684433949070643


def test_no_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as e:
        write_dataset(tmp_path, 0, 0)
    assert str(e.value) == "num_images is 0; expected at least 1"
