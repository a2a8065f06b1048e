"""What other programs leave in a dataset, and what people forget: nothing is lost, or taught, without a word."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_sets import describe, paint, save, save_scenes, scenes, voc_xml, write_json, write_roboflow, write_yolo

from rapidetr.core.errors import DatasetError
from rapidetr.core.masks import Masks
from rapidetr.data import examine, find_splits, read_dataset, sources
from rapidetr.data.records import Dataset
from rapidetr.data.sources import RecordSource


def kinds(root: Path) -> dict[str, str]:
    return {f.kind: f.severity for f in examine(root).findings}


def edit(root: Path, change: Callable[[dict[str, Any]], Any], split: str = "train") -> None:
    file = root / split / "_annotations.coco.json"
    data = json.loads(file.read_text())
    change(data)
    write_json(file, data)


def test_a_folder_that_data_yaml_misspells_is_an_error(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"train": scenes(0), "valid": scenes(1, 2, "b")}, "{kind}/{split}")
    (tmp_path / "data.yaml").write_text(
        "train: [images/train, images/trian_b]\nval: images/vall\ntest: images/test\nnames: [ant, bee, cat]"
    )
    told = "which is neither beside it nor as written; correct the path, or remove the entry"
    assert list(find_splits(tmp_path)) == ["train", "valid"]  # a test split is often named that nobody made
    for split, entry in {"train": "train: images/trian_b", "valid": "val: images/vall"}.items():
        with pytest.raises(DatasetError) as caught:
            read_dataset(tmp_path, split)
        assert str(caught.value) == f"yolo: data.yaml has {entry!r}, {told}"
    assert len(read_dataset(tmp_path, "train", on_error="skip")) == 3
    report = examine(tmp_path)
    assert not report.ok
    assert {(f.split, f.cost) for f in report.findings if f.kind == "missing-folder"} == {
        ("train", "all images of 1 folders are lost"),
        ("valid", "all images of 1 folders are lost"),
    }


def test_hidden_files_of_other_programs_are_no_pictures(tmp_path: Path) -> None:
    write_yolo(tmp_path / "yolo", {"train": scenes(0)}, "{kind}/{split}")
    for name in (".ipynb_checkpoints/a0-checkpoint.png", "._a0.png"):
        save(tmp_path / "yolo" / "images" / "train" / name, 9)
    (tmp_path / "yolo" / "labels" / "train" / "._a0.txt").write_bytes(b"\x00\x05\x16\x07")
    assert [Path(r.path).name for r in read_dataset(tmp_path / "yolo").images] == ["a0.png", "a1.png", "a2.png"]
    assert "label-without-image" not in kinds(tmp_path / "yolo")
    save_scenes(tmp_path / "voc" / "train", made := scenes(0))
    for scene in made:
        (tmp_path / "voc" / "train" / f"{scene[0]}.xml").write_text(voc_xml(scene))
    (tmp_path / "voc" / "train" / "._a0.xml").write_bytes(b"\x00\x05\x16\x07\xff")
    assert len(read_dataset(tmp_path / "voc")) == 3


def test_hidden_parts_above_the_dataset_do_not_count(tmp_path: Path) -> None:
    write_yolo(tmp_path / ".cache" / "set", {"train": scenes(0)}, "{kind}/{split}")
    assert len(read_dataset(tmp_path / ".cache" / "set")) == 3


def test_a_train_split_without_an_object_is_an_error(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"train": scenes(0), "valid": scenes(1, 2, "b")}, "{kind}/{split}")
    (tmp_path / "labels" / "train").rename(tmp_path / "labels" / "else")
    found = next(f for f in examine(tmp_path).findings if f.kind == "no-objects")
    assert (found.severity, found.split, found.cost) == (
        "error",
        "train",
        "there is nothing to learn: all 3 images of train are without objects",
    )
    where = tmp_path / "images" / "train" / "a0.png"
    assert found.examples == (f"3 images; those of {where} were looked for in labels/train/a0.txt",)
    from rapidetr.training.run import train

    with pytest.raises(DatasetError) as caught:
        train(tmp_path, model="pico", weights="random", epochs=1, device="cpu", out=tmp_path / "run")
    expected = f"its train split has 3 images and no object, so there is nothing to learn; objects of {where} were looked for in"
    assert str(caught.value) == f"{tmp_path}: {expected} labels/train/a0.txt"


def test_crowds_alone_are_no_objects(tmp_path: Path) -> None:
    write_roboflow(tmp_path, {"train": scenes(0)})
    edit(tmp_path, lambda data: [a.update(iscrowd=1) for a in data["annotations"]])
    assert kinds(tmp_path)["no-objects"] == "error"


def test_a_split_that_was_saved_anew_is_a_copied_split(tmp_path: Path) -> None:
    made = [(f"a{k}", (96, 128), objects) for k, (_, _, objects) in enumerate(scenes(0))]
    write_roboflow(tmp_path, {"train": made, "valid": scenes(1, 3, "b")})
    data = describe(made)
    for k, image in enumerate(data["images"]):
        image["file_name"] = f"t{k}.jpg"
        (tmp_path / "test").mkdir(exist_ok=True)
        smooth = Image.fromarray(paint(k, (96, 128))).resize((64, 48)).resize((128, 96), Image.Resampling.BILINEAR)
        smooth.save(tmp_path / "train" / f"a{k}.png")
        smooth.save(tmp_path / "test" / f"t{k}.jpg", quality=60)
    write_json(tmp_path / "test" / "_annotations.coco.json", data)
    found = next(f for f in examine(tmp_path).findings if f.kind == "copied-split")
    assert (found.severity, found.split, found.count) == ("error", "test", 3)
    assert found.cost == "scores on test are far too high: all 3 of its images are in train"


def test_numbers_that_a_table_program_wrote_as_floats(tmp_path: Path) -> None:
    write_roboflow(tmp_path, {"train": scenes(0)})
    plain = read_dataset(tmp_path)

    def floats(data: dict[str, Any]) -> None:
        for image in data["images"]:
            image.update({key: float(image[key]) for key in ("id", "height", "width")})
        for a in data["annotations"]:
            a.update(image_id=float(a["image_id"]), category_id=float(a["category_id"]))
        for c in data["categories"]:
            c["id"] = float(c["id"])

    edit(tmp_path, floats)
    found = read_dataset(tmp_path)
    assert [(r.image_id, r.size_hw, r.class_ids.tolist()) for r in found.images] == [
        (r.image_id, r.size_hw, r.class_ids.tolist()) for r in plain.images
    ]
    assert all(type(v) is int for r in found.images for v in (r.image_id, *r.size_hw))
    assert found.labels == plain.labels
    assert all(type(i) is int for i in found.labels.dataset_ids)
    edit(tmp_path, lambda data: data["images"][1].update(height=40.5))
    with pytest.raises(DatasetError, match=r"image 1 has height 40.5 and width .*; expected whole numbers of pixels"):
        read_dataset(tmp_path)


def test_run_lengths_without_a_box(tmp_path: Path) -> None:
    write_roboflow(tmp_path, {"train": scenes(0, 1)})
    h, w = scenes(0, 1)[0][1]
    mask = np.zeros((1, h, w), bool)
    mask[0, 3:9, 5:20] = True

    def change(data: dict[str, Any], masks: np.ndarray = mask) -> None:
        data["annotations"] = data["annotations"][:1]
        data["annotations"][0] |= {"segmentation": Masks.from_dense(masks).rle()[0], "bbox": None}

    edit(tmp_path, change)
    assert read_dataset(tmp_path).images[0].boxes_xyxy_px.tolist() == [[5, 3, 20, 9]]
    edit(tmp_path, lambda data: change(data, np.zeros_like(mask)))
    with pytest.raises(DatasetError, match=r"annotation 0 has no bbox, and a segmentation without a pixel; expected one of the two$"):
        read_dataset(tmp_path)


def test_a_group_of_classes_that_valid_uses_as_a_class(tmp_path: Path) -> None:
    write_roboflow(tmp_path, {"train": scenes(0), "valid": scenes(1, 2, "b")})
    for split in ("train", "valid"):
        edit(tmp_path, lambda data: data["categories"].append({"id": 9, "name": "none", "supercategory": "all"}), split)
    assert read_dataset(tmp_path).labels.names == ("ant", "bee", "cat")
    edit(tmp_path, lambda data: data["annotations"][0].update(category_id=9), "valid")
    with pytest.raises(DatasetError) as caught:
        read_dataset(tmp_path, "valid")
    told = "has category 9 (none), which the train split does not have; there it is a group of other classes without annotations: "
    assert str(caught.value) == f"coco: valid/_annotations.coco.json annotation 0 {told}annotate it there, or name another class"


def test_a_file_without_categories_says_so(tmp_path: Path) -> None:
    write_roboflow(tmp_path, {"train": scenes(0)})
    edit(tmp_path, lambda data: data.update(categories=[], annotations=[]))
    with pytest.raises(DatasetError) as caught:
        read_dataset(tmp_path)
    assert str(caught.value) == "coco: train/_annotations.coco.json lists no category; expected at least one in 'categories'"
    assert kinds(tmp_path)["broken-file"] == "error"


def test_masks_of_a_large_photo_are_made_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transforms hold several copies of dense masks; at the smaller size each still covers its part of the picture."""
    write_roboflow(tmp_path, {"train": scenes(3, 1)})
    h, w = scenes(3, 1)[0][1]

    def outlines(data: dict[str, Any]) -> None:
        for a in data["annotations"]:
            x, y, bw, bh = a["bbox"]
            a["segmentation"] = [[x, y, x + bw, y, x + bw, y + bh, x, y + bh]]

    edit(tmp_path, outlines)
    dataset: Dataset = read_dataset(tmp_path)
    whole = RecordSource(dataset, masks=True)(0)
    assert whole.size_hw == (h, w)
    n = len(whole.class_ids)
    monkeypatch.setattr(sources, "MASK_BYTES", n * h * w // 3)
    small = RecordSource(dataset, masks=True)(0)
    assert small.masks is not None
    assert whole.masks is not None
    assert n * small.size_hw[0] * small.size_hw[1] <= n * h * w // 3
    assert small.masks.shape == (n, *small.size_hw)
    parts = [s.boxes_xyxy_px / np.array([*s.size_hw[::-1]] * 2) for s in (small, whole)]
    assert np.allclose(*parts, atol=1e-5)
    assert np.allclose(small.masks.mean((1, 2)), whole.masks.mean((1, 2)), atol=0.03)
