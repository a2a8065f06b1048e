"""Every layout is recognised and read to the same records."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from small_sets import NAMES, describe, save, save_scenes, scenes, voc_xml, write_json, write_roboflow, write_voc, write_yolo

from rapidetr.core.errors import DatasetError
from rapidetr.core.labels import LabelSpace
from rapidetr.data import Dataset, find_splits, read_dataset

# pycocotools 2 turns its buffers into arrays in a way that numpy 2 warns about
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def plain(dataset: Dataset) -> list[tuple[object, ...]]:
    """What a record says about its picture, without where it was written."""
    return [
        (Path(r.path).stem, r.split, r.class_ids.tolist(), r.boxes_xyxy_px.tolist(), r.crowd.tolist(), r.areas.tolist(), r.size_hw)
        for r in dataset.images
    ]


@pytest.mark.parametrize("seed", range(12))
def test_coco_yolo_and_voc_read_to_the_same_records(tmp_path: Path, seed: int) -> None:
    splits = {"train": scenes(seed, 4), "valid": scenes(seed + 100, 2, "b"), "test": scenes(seed + 200, 2, "c")}
    roots = [write_roboflow(tmp_path / "1", splits), write_yolo(tmp_path / "2", splits), write_voc(tmp_path / "3", splits)]
    for split, made in splits.items():
        coco, yolo, voc = (read_dataset(root, split) for root in roots)
        assert [d.format for d in (coco, yolo, voc)] == ["coco", "yolo", "voc"]
        assert coco.labels == yolo.labels == voc.labels == LabelSpace.contiguous(NAMES)
        assert plain(coco) == plain(voc)
        assert [r[0] for r in plain(coco)] == [s[0] for s in made]
        for a, b, (_, _, objects) in zip(coco.images, yolo.images, made, strict=True):
            assert [tuple(box) for box in a.boxes_xyxy_px.tolist()] == [box for _, box in objects]
            assert a.class_ids.tolist() == b.class_ids.tolist() == [c for c, _ in objects]
            assert a.size_hw == b.size_hw
            # YOLO stores parts of the picture in float64: back in pixels of at most 80 that leaves float32 rounding
            np.testing.assert_allclose(a.boxes_xyxy_px, b.boxes_xyxy_px, atol=8e-6)
            np.testing.assert_allclose(a.areas, b.areas, rtol=1e-9)


def test_records_have_the_promised_types_and_survive_pickling(tmp_path: Path) -> None:
    dataset = pickle.loads(pickle.dumps(read_dataset(write_roboflow(tmp_path, {"train": scenes(0)}))))
    record = dataset.images[0]
    kinds = {"boxes_xyxy_px": np.float32, "class_ids": np.int64, "crowd": np.bool_, "areas": np.float64, "numbers": np.int64}
    assert {name: getattr(record, name).dtype for name in kinds} == kinds
    assert record.outlines is None
    assert not dataset.has_outlines
    assert dataset.class_counts.tolist() == [sum(c == i for s in scenes(0) for c, _ in s[2]) for i in range(3)]


def test_an_image_without_objects_keeps_its_place(tmp_path: Path) -> None:
    made = [("a0", (40, 50), []), *scenes(1, 2, "b")]
    for root in (
        write_roboflow(tmp_path / "1", {"train": made}),
        write_yolo(tmp_path / "2", {"train": made}),
        write_voc(tmp_path / "3", {"train": made}),
    ):
        record = read_dataset(root).images[0]
        assert (Path(record.path).name, len(record), record.boxes_xyxy_px.shape) == ("a0.png", 0, (0, 4))
        assert len(record.masks((40, 50))) == 0


# ---- COCO


def test_coco_2017_layout(tmp_path: Path) -> None:
    for k, (year, tag) in enumerate({"train2017": "a", "val2017": "b"}.items()):
        save_scenes(tmp_path / year, scenes(k, 2, tag), k)
        write_json(tmp_path / "annotations" / f"instances_{year}.json", describe(scenes(k, 2, tag)))
        write_json(tmp_path / "annotations" / f"captions_{year}.json", {"images": [], "annotations": []})
        write_json(tmp_path / "annotations" / f"person_keypoints_{year}.json", describe([]))
    assert list(find_splits(tmp_path)) == ["train", "valid"]
    assert read_dataset(tmp_path, "val").images[0].path == str(tmp_path / "val2017" / "b0.png")
    alone = read_dataset(tmp_path / "annotations" / "instances_val2017.json", "valid")
    assert alone.images[0].path == str(tmp_path / "val2017" / "b0.png")
    assert alone.images[0].place(0) == "annotations/instances_val2017.json annotation 0"


@pytest.mark.parametrize("pictures", ["", "images", "train/images"])
def test_folder_of_pictures_with_one_json(tmp_path: Path, pictures: str) -> None:
    made = scenes(0, 2)
    save_scenes(tmp_path / pictures, made)
    write_json(tmp_path / "labels.json", describe(made))
    write_json(tmp_path / "settings.json", {"colour": "red"})
    if pictures == "train/images":
        (tmp_path / "labels.json").rename(tmp_path / "train" / "labels.json")
    dataset = read_dataset(tmp_path)
    assert [r.path for r in dataset.images] == [str(tmp_path / pictures / f"a{k}.png") for k in range(2)]


def test_a_split_folder_alone_is_that_split(tmp_path: Path) -> None:
    write_roboflow(tmp_path, {"train": scenes(0), "valid": scenes(1)})
    assert list(find_splits(tmp_path / "valid")) == ["valid"]
    assert list(find_splits(tmp_path / "valid" / "_annotations.coco.json")) == ["valid"]


def test_roboflow_folders_may_have_other_names(tmp_path: Path) -> None:
    write_roboflow(tmp_path, {"test": scenes(0), "calibration": scenes(1), "Validation": scenes(2), "train": scenes(3)})
    assert list(find_splits(tmp_path)) == ["train", "valid", "test", "calibration"]


def test_classes_are_ordered_by_id_and_may_have_gaps(tmp_path: Path) -> None:
    data = describe(scenes(0, 1))
    data["categories"] = [{"id": 90, "name": "ant"}, {"id": 7, "name": "bee"}, {"id": 13, "name": "cat"}]
    for a in data["annotations"]:
        a["category_id"] = [90, 7, 13][a["category_id"]]
    write_json(tmp_path / "x.json", data)
    dataset = read_dataset(tmp_path / "x.json")
    assert dataset.labels == LabelSpace.contiguous(["bee", "cat", "ant"], dataset_ids=[7, 13, 90])
    assert dataset.images[0].class_ids.tolist() == [[2, 0, 1][c] for c, _ in scenes(0, 1)[0][2]]


def test_only_an_unused_parent_class_is_left_out(tmp_path: Path) -> None:
    data = describe(scenes(0, 1))
    for c in data["categories"]:
        c.update(id=c["id"] + 1, supercategory="insects")
    for a in data["annotations"]:
        a["category_id"] += 1
    data["categories"] += [
        {"id": 0, "name": "insects", "supercategory": "none"},
        {"id": 4, "name": "never seen", "supercategory": "insects"},
    ]
    data["categories"].append({"id": 5, "name": "self", "supercategory": "self"})
    file = write_json(tmp_path / "train" / "_annotations.coco.json", data)
    write_json(tmp_path / "valid" / "_annotations.coco.json", data)
    expected = LabelSpace.contiguous([*NAMES, "never seen", "self"], dataset_ids=[1, 2, 3, 4, 5])
    assert read_dataset(tmp_path).labels == read_dataset(tmp_path, "valid").labels == expected
    data["annotations"][0]["category_id"] = 0
    write_json(file, data)
    assert read_dataset(tmp_path).labels.names[0] == "insects"


def test_splits_may_number_the_same_classes_differently(tmp_path: Path) -> None:
    write_roboflow(tmp_path, {"train": scenes(0)})
    data = describe(scenes(1, 1))
    for c in data["categories"]:
        c["id"] += 10
    for a in data["annotations"]:
        a["category_id"] += 10
    write_json(tmp_path / "valid" / "_annotations.coco.json", data)
    dataset = read_dataset(tmp_path, "valid")
    assert dataset.labels == LabelSpace.contiguous(NAMES)
    assert dataset.images[0].class_ids.tolist() == [c for c, _ in scenes(1, 1)[0][2]]


def test_masks_of_polygons_runs_crowds_and_boxes(tmp_path: Path) -> None:
    data = describe([("a0", (40, 50), [(0, (5.0, 6.0, 20.0, 30.0))] * 4)])
    triangle = [5.0, 6.0, 20.3, 8.1, 9.0, 30.7]
    dense = np.zeros((40, 50), np.uint8)
    dense[6:30, 5:20] = 1
    dense[10:12, 8:10] = 0
    runs = coco_mask.encode(np.asfortranarray(dense))
    runs["counts"] = runs["counts"].decode()
    flat = dense.T.reshape(-1)
    edges = np.flatnonzero(np.diff(flat)) + 1
    listed = np.diff([0, *edges.tolist(), flat.size]).tolist()
    outlines = [[triangle], runs, {"size": [40, 50], "counts": listed}, []]
    for a, outline, crowd in zip(data["annotations"], outlines, (0, 0, 1, 0), strict=True):
        a.update(segmentation=outline, iscrowd=crowd)
    record = read_dataset(write_json(tmp_path / "x.json", data)).images[0]
    masks = record.masks()
    expected = coco_mask.decode(coco_mask.frPyObjects([triangle], 40, 50))[..., 0]
    box = np.zeros((40, 50), bool)
    box[6:30, 5:20] = True
    assert record.crowd.tolist() == [False, False, True, False]
    assert np.array_equal(masks.dense(), np.stack([expected, dense, dense, box]).astype(bool))


def test_a_missing_box_comes_from_the_outline_and_a_missing_area_from_the_box(tmp_path: Path) -> None:
    data = describe([("a0", (40, 50), [(0, (5.0, 6.0, 20.0, 30.0))])])
    data["annotations"][0] = {"id": 1, "image_id": 1, "category_id": 0, "segmentation": [[1, 2, 11, 2, 11, 7], [3, 1, 4, 9, 5, 1]]}
    record = read_dataset(write_json(tmp_path / "x.json", data)).images[0]
    assert record.boxes_xyxy_px.tolist() == [[1, 1, 11, 9]]
    assert record.areas.tolist() == [80]


@pytest.mark.parametrize(
    "name", ["/home/else/set/train/a0.png", "C:\\set\\train\\a0.png", "images/train/a0.png", "..\\train\\a0.png", "./a0.png"]
)
def test_foreign_file_names_are_healed(tmp_path: Path, name: str) -> None:
    write_roboflow(tmp_path, {"train": scenes(0, 1)})
    data = describe(scenes(0, 1))
    data["images"][0]["file_name"] = name
    write_json(tmp_path / "train" / "_annotations.coco.json", data)
    assert read_dataset(tmp_path).images[0].path == str(tmp_path / "train" / "a0.png")


def test_given_labels_are_used(tmp_path: Path) -> None:
    write_roboflow(tmp_path, {"valid": scenes(0, 1)})
    labels = LabelSpace.contiguous(["cat", "dog", "bee", "ant"])
    dataset = read_dataset(tmp_path, "valid", labels=labels)
    assert dataset.labels is labels
    assert dataset.images[0].class_ids.tolist() == [[3, 2, 0][c] for c, _ in scenes(0, 1)[0][2]]


# ---- YOLO


@pytest.mark.parametrize("order", ["{split}/{kind}", "{kind}/{split}"])
def test_yolo_folders_in_both_orders(tmp_path: Path, order: str) -> None:
    splits = {"train": scenes(0), "valid": scenes(1, 2, "b")}
    write_yolo(tmp_path, splits, order)
    assert [len(read_dataset(tmp_path, s)) for s in splits] == [3, 2]
    assert read_dataset(tmp_path / "data.yaml", "valid").images[0].place(0) == f"{order.format(split='valid', kind='labels')}/b0.txt line 1"


@pytest.mark.parametrize(
    "lines",
    [
        "path: /home/else/datasets/mine\ntrain: images/train\nval: images/valid",
        "path: ../datasets/mine\ntrain: images/train\nval: images/valid",
        "train: /home/else/mine/images/train\nval: /home/else/mine/images/valid",
        "train: ../mine/images/train\nval: ../mine/images/valid",
        "train: C:\\mine\\images\\train\nval: C:\\mine\\images\\valid",
        "path: .\ntrain: [images/train]\nval: images/valid\ntest: images/nowhere",
    ],
)
def test_foreign_folders_are_looked_for_beside_the_yaml(tmp_path: Path, lines: str) -> None:
    write_yolo(tmp_path, {"train": scenes(0), "valid": scenes(1, 2, "b")}, "{kind}/{split}")
    (tmp_path / "data.yaml").write_text(lines + "\nnames:\n  0: ant\n  1: bee\n  2: no\n")
    assert list(find_splits(tmp_path)) == ["train", "valid"]
    assert [len(read_dataset(tmp_path, s)) for s in ("train", "valid")] == [3, 2]
    assert read_dataset(tmp_path).labels.names == ("ant", "bee", "no")


def test_a_missing_folder_is_not_replaced_by_that_of_another_split(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"train": scenes(0)}, "{split}/{kind}")
    save(tmp_path / "images" / "x.png", 5)
    (tmp_path / "data.yaml").write_text("train: /home/else/train/images\nval: /home/else/valid/images\nnames: [ant, bee, cat]")
    assert find_splits(tmp_path)["valid"].folders == ()


def test_folders_elsewhere_are_used_as_written(tmp_path: Path) -> None:
    write_yolo(tmp_path / "far", {"train": scenes(0)}, "{kind}/{split}")
    (tmp_path / "near").mkdir()
    (tmp_path / "near" / "data.yaml").write_text(f"path: {tmp_path / 'far'}\ntrain: images/train\nnames: [ant, bee, cat]")
    assert len(read_dataset(tmp_path / "near")) == 3


def test_yolo_list_file(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"train": scenes(0)}, "{kind}/{split}")
    (tmp_path / "train.txt").write_text(
        f"./images/train/a2.png\n\n{tmp_path}/images/train/a0.png\n/home/else/mine/images/train/a1.png\nC:\\mine\\images\\train\\a1.png\n"
    )
    (tmp_path / "data.yaml").write_text("train: train.txt\nnames: [ant, bee, cat]")
    dataset = read_dataset(tmp_path)
    assert [r.path for r in dataset.images] == [str(tmp_path / "images" / "train" / f"a{k}.png") for k in (2, 0, 1, 1)]
    assert [len(r) for r in dataset.images] == [len(scenes(0)[k][2]) for k in (2, 0, 1, 1)]


def test_yolo_polygons_and_turned_pictures(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"train": [("a0", (40, 80), [])]})
    turned = Image.fromarray(np.zeros((40, 80, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "train" / "images" / "a0.png", exif=exif)
    (tmp_path / "train" / "labels" / "a0.txt").write_text("1 0.25 0.5 0.5 0.5 0.5 0.75\n2 0.1 0.1 0.9 0.1 0.9 0.9 0.1 0.9\n")
    record = read_dataset(tmp_path).images[0]
    assert record.size_hw == (80, 40)
    np.testing.assert_allclose(record.boxes_xyxy_px, [[10, 40, 20, 60], [4, 8, 36, 72]], rtol=1e-6)
    assert record.masks().areas[1] == 32 * 64
    assert record.class_ids.tolist() == [1, 2]


# ---- VOC


def test_voc_of_the_devkit_counts_from_one_and_lies_deeper(tmp_path: Path) -> None:
    scene = ("a0", (40, 50), [(0, (1.0, 1.0, 50.0, 40.0))])
    write_voc(tmp_path / "VOCdevkit" / "VOC2012", {"train": [scene]})
    (tmp_path / "VOCdevkit" / "VOC2012" / "ImageSets" / "Main" / "ant_train.txt").write_text("a0 -1\n")
    assert read_dataset(tmp_path).images[0].boxes_xyxy_px.tolist() == [[1, 1, 50, 40]]
    (tmp_path / "VOCdevkit" / "VOC2012" / "Annotations" / "a0.xml").write_text(voc_xml(scene, "The VOC2012 Database"))
    assert read_dataset(tmp_path).images[0].boxes_xyxy_px.tolist() == [[0, 0, 50, 40]]


@pytest.mark.parametrize(
    ("lists", "expected"), [(["trainval", "test"], ["train", "test"]), (["train", "trainval"], ["train"]), ([], ["train"])]
)
def test_voc_lists(tmp_path: Path, lists: list[str], expected: list[str]) -> None:
    write_voc(tmp_path, {"train": scenes(0)})
    for file in (tmp_path / "ImageSets" / "Main").iterdir():
        file.unlink()
    for name in lists:
        (tmp_path / "ImageSets" / "Main" / f"{name}.txt").write_text("a0\na1 1\n")
    assert list(find_splits(tmp_path)) == expected
    assert len(read_dataset(tmp_path)) == (2 if lists else 3)


def test_voc_names_with_spaces(tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": [("a 1", (40, 50), []), ("a", (40, 50), [])]})
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a 1\na -1\n")  # a name, and one with the -1 of a class list
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_text("b two -1\n")
    assert [Path(r.path).name for r in read_dataset(tmp_path).images] == ["a 1.png", "a.png"]
    with pytest.raises(DatasetError, match=r"Annotations/b two\.xml is not there"):
        read_dataset(tmp_path, "valid")


def test_voc_beside_the_pictures(tmp_path: Path) -> None:
    """As Roboflow exports it: a folder for each split, an XML file beside each picture."""
    write_voc(tmp_path / "voc", {"train": scenes(0), "valid": scenes(1, 3, "b")})
    for split, tag in (("train", "a"), ("valid", "b")):
        (tmp_path / "flat" / split).mkdir(parents=True)
        for folder in ("Annotations", "JPEGImages"):
            for file in (tmp_path / "voc" / folder).glob(f"{tag}*"):
                file.rename(tmp_path / "flat" / split / file.name)
    assert list(find_splits(tmp_path / "flat")) == ["train", "valid"]
    for split, made in (("train", scenes(0)), ("valid", scenes(1, 3, "b"))):
        dataset = read_dataset(tmp_path / "flat", split)
        assert [(Path(r.path).name, len(r)) for r in dataset.images] == [(f"{stem}.png", len(objects)) for stem, _, objects in made]
