"""Broken datasets end in one line that names file and place, or are skipped and listed."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_sets import describe, scenes, write_json, write_roboflow, write_voc, write_yolo

from rapidetr.core.errors import BackendMissing, ConfigError, DatasetError
from rapidetr.data import find_splits, read_dataset, records

BOX_WANTED = "; expected [x, y, width, height] in pixels"
NAME_WANTED = "; expected a name inside the dataset folder"
NAMES_WANTED = "; expected a list or a table of names, and their number"
CORNERS_WANTED = "; expected xmin, ymin, xmax and ymax in pixels, each min below its max"
Change = Callable[[dict[str, Any]], Any]
COCO = "coco: train/_annotations.coco.json"


def test_what_is_no_dataset(tmp_path: Path) -> None:
    expected = (
        "expected COCO (train/_annotations.coco.json, annotations/instances_train2017.json or one JSON beside the images), "
        "YOLO (data.yaml) or Pascal VOC (JPEGImages, Annotations)"
    )
    for path, message in (
        (tmp_path / "nowhere", f"{tmp_path / 'nowhere'}: no such file or folder; {expected}"),
        (tmp_path, f"{tmp_path}: no known dataset is here; {expected}"),
    ):
        with pytest.raises(DatasetError) as caught:
            find_splits(path)
        assert str(caught.value) == message
    with pytest.raises(DatasetError, match=r"^dataset format is 'csv'; expected one of coco, yolo, voc$"):
        find_splits(tmp_path, format="csv")
    with pytest.raises(ConfigError, match=r"^on_error is 'ignore'; expected one of raise, skip$"):
        read_dataset(write_roboflow(tmp_path, {"train": scenes(0)}), on_error="ignore")


def test_a_missing_split_names_those_that_are_there(tmp_path: Path) -> None:
    write_roboflow(tmp_path, {"train": scenes(0), "valid": scenes(1)})
    with pytest.raises(DatasetError, match=f"^{re.escape(str(tmp_path))}: no test split; there is train, valid$"):
        read_dataset(tmp_path, "test")


def test_two_formats_in_one_folder_need_a_word(tmp_path: Path) -> None:
    write_roboflow(tmp_path, {"train": scenes(0)})
    write_yolo(tmp_path, {"valid": scenes(1)})
    with pytest.raises(DatasetError, match=f"^{re.escape(str(tmp_path))}: could be coco or yolo; say which with format=$"):
        read_dataset(tmp_path)
    assert read_dataset(tmp_path, format="coco").format == "coco"


def test_two_files_for_one_split_need_a_choice(tmp_path: Path) -> None:
    write_roboflow(tmp_path, {"valid": scenes(0), "val": scenes(1)})
    files = ", ".join(str(tmp_path / s / "_annotations.coco.json") for s in ("val", "valid"))
    message = f"more than one annotation file could be the valid split: {files}; pass one of them as the path"
    with pytest.raises(DatasetError, match=f"^{re.escape(message)}$"):
        find_splits(tmp_path)


def test_yaml_files_of_other_programs_do_no_harm(tmp_path: Path) -> None:
    write_roboflow(tmp_path, {"train": scenes(0)})
    (tmp_path / "compose.yaml").write_text("a: &a [*a")
    (tmp_path / "other.yml").write_bytes(b"\xff")
    assert read_dataset(tmp_path).format == "coco"


def test_two_yamls_need_a_choice(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"train": scenes(0)})
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text((tmp_path / "data.yaml").read_text())
    assert find_splits(tmp_path)["train"].annotations.name == "data.yaml"
    (tmp_path / "data.yaml").unlink()
    with pytest.raises(DatasetError, match=r": a\.yaml, b\.yaml all describe a YOLO dataset; pass one of them as the path$"):
        find_splits(tmp_path)


def set_in(group: str, **fields: Any) -> Change:
    return lambda data: data[group][1].update(fields)


RUNS = {"size": [1, 9], "counts": [3, 3, 3]}
COCO_ERRORS: list[tuple[Change, str, str]] = [
    (set_in("annotations", image_id=77), "unknown-image", "annotation 1 belongs to image 77, which the file does not list"),
    (set_in("annotations", image_id=[1]), "unknown-image", "annotation 1 belongs to image [1], which the file does not list"),
    (set_in("annotations", category_id=12), "wrong-class", "annotation 1 has category 12, but the file lists 3 classes (0-2)"),
    (set_in("annotations", category_id="1"), "wrong-class", "annotation 1 has category 1, but the file lists 3 classes (0-2)"),
    (set_in("annotations", bbox=[1, 2, 3]), "bad-box", "annotation 1 has bbox [1, 2, 3]" + BOX_WANTED),
    (set_in("annotations", bbox=[1, 2, -3, 4]), "bad-box", "annotation 1 has bbox [1, 2, -3, 4]" + BOX_WANTED),
    (set_in("annotations", bbox=[1, 2, float("nan"), 4]), "bad-box", "annotation 1 has bbox [1, 2, nan, 4]" + BOX_WANTED),
    (set_in("annotations", bbox=[1, 2, 10**400, 4]), "bad-box", None),
    (set_in("annotations", bbox=None), "bad-box", "annotation 1 has bbox None" + BOX_WANTED),
    (set_in("annotations", segmentation=[[1, 2, 3]]), "bad-outline",
     "annotation 1 has segmentation [[1, 2, 3]]; expected lists of x, y, x, y, ... in pixels"),
    (set_in("annotations", segmentation=[[0, 0, 1e6, 0, 0, 1e6]]), "bad-outline",
     "annotation 1 has an outline of 3000000 pixels; expected at most 1000000"),
    (set_in("annotations", segmentation=RUNS), "bad-outline", None),
    (set_in("annotations", segmentation={"counts": 5}), "bad-outline", None),
    (set_in("annotations", segmentation={"counts": "0" * 9}), "bad-outline", None),
    (lambda d: d["annotations"].__setitem__(1, 5), "bad-annotation", "annotation 1 is 5; expected an object"),
    (set_in("images", id=1), "bad-image", "image 1 repeats id 1; give each image its own id"),
    (set_in("images", id=None), "bad-image", "image 1 has id None; expected a whole number or a text"),
    (set_in("images", height=10**6, width=10**6), "bad-image",
     "image 1 has height 1000000 and width 1000000; expected whole numbers of pixels, at most 268435456 in all"),
    (set_in("images", file_name="../../etc/passwd"), "unsafe-path", "image 1 has file_name '../../etc/passwd'" + NAME_WANTED),
    (set_in("images", file_name="a/.."), "unsafe-path", "image 1 has file_name 'a/..'" + NAME_WANTED),
    (set_in("images", file_name="a\0.png"), "unsafe-path", None),
    (set_in("images", file_name=None), "unsafe-path", "image 1 has file_name 'None'" + NAME_WANTED),
]  # fmt: skip


@pytest.mark.parametrize(("change", "kind", "message"), COCO_ERRORS)
def test_coco_errors(tmp_path: Path, change: Change, kind: str, message: str | None) -> None:
    data = describe(scenes(0, 3))
    change(data)
    write_json(tmp_path / "train" / "_annotations.coco.json", data)
    with pytest.raises(DatasetError) as caught:
        read_dataset(tmp_path)
    assert "\n" not in str(caught.value)
    assert message is None or str(caught.value) == f"{COCO} {message}"
    dataset = read_dataset(tmp_path, on_error="skip")
    assert dataset.problems[0] == records.Problem(kind, "error", dataset.problems[0].where, str(caught.value))
    objects = [len(s[2]) for s in scenes(0, 3)]
    lost = objects[1] if kind in ("bad-image", "unsafe-path") else 1  # a bad image takes its annotations with it
    assert sum(map(len, dataset.images)) == sum(objects) - lost


def test_absolute_names_never_lead_out_of_the_folder(tmp_path: Path) -> None:
    data = describe(scenes(0, 2))
    data["images"][0]["file_name"] = "/etc/passwd"
    data["images"][1]["file_name"] = str(tmp_path / "elsewhere.png")
    (tmp_path / "elsewhere.png").write_bytes(b"")
    write_json(tmp_path / "set" / "train" / "_annotations.coco.json", data)
    paths = [r.path for r in read_dataset(tmp_path / "set").images]
    assert paths == [str(tmp_path / "set" / "train" / name) for name in ("passwd", "elsewhere.png")]


def test_a_class_that_train_does_not_have(tmp_path: Path) -> None:
    write_roboflow(tmp_path, {"train": scenes(0), "valid": scenes(1)})
    data = describe(scenes(1))
    data["categories"].append({"id": 3, "name": "dog"})
    write_json(tmp_path / "valid" / "_annotations.coco.json", data)
    assert len(read_dataset(tmp_path, "valid").labels) == 3  # unused, so it does no harm
    data["annotations"][1]["category_id"] = 3
    write_json(tmp_path / "valid" / "_annotations.coco.json", data)
    message = "coco: valid/_annotations.coco.json annotation 1 has category 3 (dog), which the train split does not have"
    with pytest.raises(DatasetError, match=f"^{re.escape(message)}$"):
        read_dataset(tmp_path, "valid")


WHOLE_FILES = [
    ('{"images": [],\n "annotations": [1,]}', "broken JSON at line 2 column 20: Expecting value; export it again"),
    ('{"images": ' + "[" * 100_000, "JSON that no annotation tool writes (RecursionError); export it again"),
    ('{"images": [' + "1" * 5000 + "]}", "JSON that no annotation tool writes (ValueError); export it again"),
]


@pytest.mark.parametrize(("text", "message"), WHOLE_FILES)
def test_json_that_cannot_be_parsed(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "train" / "_annotations.coco.json"
    write_json(file, {}).write_text(text)
    with pytest.raises(DatasetError) as caught:
        read_dataset(tmp_path)
    assert str(caught.value) == f"{file}: {message}"


@pytest.mark.parametrize("data", [[], {"images": [], "annotations": []}, {"images": {}, "annotations": [], "categories": []}])
def test_json_without_the_three_lists(tmp_path: Path, data: Any) -> None:
    write_json(tmp_path / "train" / "_annotations.coco.json", data)
    key = "categories" if data and isinstance(data["images"], list) else "images"
    message = f"{COCO} has no list '{key}'; expected a COCO object annotation file"
    with pytest.raises(DatasetError, match=f"^{re.escape(message)}$"):
        read_dataset(tmp_path)


def test_bytes_that_are_no_text_and_files_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_json(tmp_path / "train" / "_annotations.coco.json", {})
    file.write_bytes(b'{"images": "\xff"}')
    with pytest.raises(DatasetError, match=r": byte 12 is not UTF-8; save the file as UTF-8$"):
        read_dataset(tmp_path)
    monkeypatch.setattr("rapidetr.data.files.JSON_BYTES", 10)
    with pytest.raises(DatasetError, match=r": 15 bytes, expected at most 10; this is no annotation file$"):
        read_dataset(tmp_path)


YOLO_ERRORS = [
    ("12 0.5 0.5 0.1 0.1", "wrong-class", "has class 12, but data.yaml names 3 classes (0-2)"),
    ("1 0.5 0.5 0.1", "bad-line", "has 4 numbers; expected 5 (class and box), or a class and at least 3 points"),
    ("1 .1 .1 .2 .2 .3 .3 .4", "bad-line", "has 8 numbers; expected 5 (class and box), or a class and at least 3 points"),
    ("ant 0.5 0.5 0.1 0.1", "bad-line", "is 'ant 0.5 0.5 0.1 0.1'; expected numbers"),
    ("1 0.5 0.5 -0.1 0.1", "bad-box", "has width -0.1 and height 0.1; expected none below 0"),
]
YOLO_ERRORS += [
    (line, "bad-line", f"is {line!r}; expected a whole class number and coordinates as parts of the picture, 0 to 1")
    for line in ("1 0.5 nan 0.1 0.1", "1 32 24 10 10", "0.5 .1 .1 .1 .1", "-1 .1 .1 .1 .1", "inf .1 .1 .1 .1")
]


@pytest.mark.parametrize(("line", "kind", "message"), YOLO_ERRORS)
def test_yolo_lines(tmp_path: Path, line: str, kind: str, message: str) -> None:
    write_yolo(tmp_path, {"train": scenes(0)}, "{kind}/{split}")
    (tmp_path / "labels" / "train" / "a1.txt").write_text(f"0 0.5 0.5 0.1 0.1\n\n{line}\n")
    with pytest.raises(DatasetError) as caught:
        read_dataset(tmp_path)
    assert str(caught.value) == f"yolo: labels/train/a1.txt line 3 {message}"
    dataset = read_dataset(tmp_path, on_error="skip")
    assert [(p.kind, p.where) for p in dataset.problems] == [(kind, "labels/train/a1.txt line 3")]
    assert len(dataset.images[1]) == 1


YAML_ERRORS = [
    ("train: train/images\nnc: 4\nnames: [ant, bee, cat]", "yolo: data.yaml has nc 4, but names 3 classes; make the two agree"),
    ("train: train/images\nnames: ant", "yolo: data.yaml has names ant and nc None" + NAMES_WANTED),
    ("train: train/images\nnames: {a: ant}", "yolo: data.yaml has names {'a': 'ant'} and nc None" + NAMES_WANTED),
    ("train: train/images\nnc: x\nnames: [ant]", "yolo: data.yaml has names ['ant'] and nc x" + NAMES_WANTED),
    ("train: train/images\nnames: [ant", "{file}: broken YAML at line 2 column 12; expected train, val, names"),
    ("a: &a [x]\ntrain: train/images\nnames: [*a, *a]", "{file}: line 3 has a YAML alias, or lists in lists; write plain lists"),
    ("names: &a [*a]", "{file}: line 1 has a YAML alias, or lists in lists; write plain lists"),
    ("train: nowhere\nnames: [ant]",
     "{file}: none of its folders is there, as written or beside the file; expected images of train and val"),
    ("names: " + "[" * 5000, "{file}: line 1 has a YAML alias, or lists in lists; write plain lists"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), YAML_ERRORS)
def test_yaml_errors(tmp_path: Path, text: str, message: str) -> None:
    write_yolo(tmp_path, {"train": scenes(0)})
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DatasetError) as caught:
        read_dataset(tmp_path)
    assert str(caught.value) == message.replace("{file}", str(tmp_path / "data.yaml"))


def test_yaml_needs_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_yolo(tmp_path, {"train": scenes(0)})
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(BackendMissing, match=re.escape("reading data.yaml needs PyYAML; install it with: pip install 'rapidetr[train]'")):
        find_splits(tmp_path)


def test_yolo_pictures_without_a_size_and_names_that_leave(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"train": scenes(0)}, "{kind}/{split}")
    (tmp_path / "images" / "train" / "a1.png").write_bytes(b"nothing")
    (tmp_path / "train.txt").write_text("images/train/a1.png\n../../x.png\nimages/train/a2.png\n")
    (tmp_path / "data.yaml").write_text("train: train.txt\nnames: [ant, bee, cat]")
    dataset = read_dataset(tmp_path, on_error="skip")
    assert [p.message for p in dataset.problems if p.severity == "error"] == [
        "yolo: train.txt line 2 has '../../x.png'; expected a name inside the dataset folder",
        f"yolo: images/train/a1.png cannot be used with its labels: {tmp_path}/images/train/a1.png: "
        "no picture size can be read (UnidentifiedImageError); replace the file",
    ]
    assert [Path(r.path).name for r in dataset.images] == ["a2.png"]


BOX = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>{}</xmax><ymax>9</ymax></bndbox>"
VOC_ERRORS = [
    ("<annotation>\n <object></annotation>", "bad-xml", "Annotations/a1.xml is broken XML at line 2 column 12; export it again"),
    ('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "bad-xml",
     "Annotations/a1.xml has a document type; expected plain annotation elements"),
    (f"<annotation><object><name>ant</name>{BOX.format('x')}</object></annotation>", "bad-box",
     "Annotations/a1.xml object 1 has bndbox ['1', '2', 'x', '9']" + CORNERS_WANTED),
    (f"<annotation><object><name>ant</name>{BOX.format('nan')}</object></annotation>", "bad-box",
     "Annotations/a1.xml object 1 has bndbox ['1', '2', 'nan', '9']" + CORNERS_WANTED),
    (f"<annotation><object><name>ant</name>{BOX.format(0)}</object></annotation>", "bad-box",
     "Annotations/a1.xml object 1 has bndbox ['1', '2', '0', '9']" + CORNERS_WANTED),
    (f"<annotation><object>{BOX.format(4)}</object></annotation>", "wrong-class",
     "Annotations/a1.xml object 1 has class '', which the train split does not have (ant, bee, cat)"),
    (None, "missing-annotation", "Annotations/a1.xml is not there; expected one XML file for each listed picture"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "kind", "message"), VOC_ERRORS)
def test_voc_errors(tmp_path: Path, text: str | None, kind: str, message: str) -> None:
    write_voc(tmp_path, {"train": scenes(0)})
    file = tmp_path / "Annotations" / "a1.xml"
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(DatasetError) as caught:
        read_dataset(tmp_path)
    assert str(caught.value) == f"voc: {message}"
    dataset = read_dataset(tmp_path, on_error="skip")
    assert [p.kind for p in dataset.problems] == [kind]
    assert len(dataset) == (2 if kind in ("bad-xml", "missing-annotation") else 3)


def test_voc_lists_cannot_leave_the_folder(tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": scenes(0)})
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("../../x\n")
    with pytest.raises(DatasetError, match=r"^voc: ImageSets/Main/train.txt lists '../../x'; expected a name inside the dataset folder$"):
        read_dataset(tmp_path)


def test_masks_need_a_size_that_fits(tmp_path: Path) -> None:
    data = describe([("a0", (4, 5), [(0, (1.0, 1.0, 3.0, 3.0))])])
    del data["images"][0]["height"]
    file = write_json(tmp_path / "x.json", data)
    record = read_dataset(file).images[0]
    with pytest.raises(DatasetError, match=r"a0\.png: x\.json declares no size; pass size_hw to draw its masks$"):
        record.masks()
    assert record.masks((4, 5)).areas.tolist() == [4]
    data["annotations"][0]["segmentation"] = {"size": [4, 5], "counts": [5, 5, 10]}
    record = read_dataset(write_json(file, data)).images[0]
    assert record.masks((4, 5)).areas.tolist() == [5]
    with pytest.raises(DatasetError, match=r"^x\.json annotation 0: run-length .*; draw it again$"):
        record.masks((4, 6))
