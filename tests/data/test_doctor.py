"""The doctor: a clean set has no findings, and each defect gives exactly one, with its place, cost and remedy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_sets import paint, save, scenes, write_json, write_roboflow, write_yolo

from rapidetr.core.errors import DatasetError
from rapidetr.data import Report, examine
from rapidetr.data.leaks import _first_alike
from rapidetr.data.pictures import shrink

FILE = "train/_annotations.coco.json"


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    return write_roboflow(tmp_path, {"train": scenes(0), "valid": scenes(1, 3, "b"), "test": scenes(2, 3, "c")})


def edit(root: Path, change: Callable[[dict[str, Any]], Any], split: str = "train") -> dict[str, Any]:
    file = root / split / "_annotations.coco.json"
    data: dict[str, Any] = json.loads(file.read_text())
    change(data)
    write_json(file, data)
    return data


def only(report: Report, *, ok: bool) -> tuple[Any, ...]:
    """The fields of the only finding but its pictures."""
    assert len(report.findings) == 1, report.to_text()
    assert report.ok is ok
    return astuple(report.findings[0])[:-1]


def objects(root: Path, split: str = "train") -> int:
    return len(json.loads((root / split / "_annotations.coco.json").read_text())["annotations"])


def test_a_clean_set_has_no_findings(clean: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    report = examine(clean, progress=lambda *step: seen.append(step))
    assert report.findings == ()
    assert report.ok
    assert seen[0] == (1, 9, str(clean / "train" / "a0.png"))
    assert [s[0] for s in seen] == list(range(1, 10))
    assert examine(clean, full=False) == report


def test_no_dataset_at_all(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no known dataset is here"):
        examine(tmp_path)


def test_a_split_that_lists_no_image(clean: Path) -> None:
    file = clean / "valid" / "_annotations.coco.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "images": [], "annotations": []}))
    report = examine(clean)
    finding = next(f for f in report.findings if f.kind == "empty-split")
    assert not report.ok
    assert (finding.split, finding.cost, finding.remedy) == ("valid", "the valid split cannot be used", "add images to it, or remove it")


def test_missing_image(clean: Path) -> None:
    (clean / "train" / "a1.png").unlink()
    where = f"{clean}/train/a1.png ({FILE})"
    row = ("missing-image", "error", "train", 1, "1 of 3 images are lost", "copy the files there, or remove their entries", (where,))
    assert only(examine(clean), ok=False) == row


def test_truncated_image(clean: Path) -> None:
    file = clean / "train" / "a1.png"
    file.write_bytes(file.read_bytes()[:-200])
    kind, severity, split, count, cost, remedy, examples = only(examine(clean), ok=False)
    assert (kind, severity, split, count) == ("unreadable-image", "error", "train", 1)
    assert (cost, remedy) == ("1 of 3 images are lost", "replace the files, or remove their entries")
    assert examples[0].startswith(f"{file} is damaged or cut off (")
    assert examine(clean, full=False).ok  # the header alone is whole


def test_a_file_that_is_no_picture(clean: Path) -> None:
    (clean / "train" / "a1.png").write_text("hello")
    assert only(examine(clean), ok=False)[0] == only(examine(clean, full=False), ok=False)[0] == "unreadable-image"


def test_a_finding_about_pictures_names_them_once_each(clean: Path) -> None:
    edit(clean, lambda d: [a.update(bbox=[-30, -30, 70, 60]) for a in d["annotations"]])
    findings = {f.kind: f for f in examine(clean).findings}
    paths = {f"{clean}/train/a{i}.png" for i in range(3)}
    assert findings["box-outside"].count > len(findings["box-outside"].pictures) > 0
    assert set(findings["box-outside"].pictures) <= paths
    assert len(set(findings["box-outside"].pictures)) == len(findings["box-outside"].pictures)


def test_wrong_size(clean: Path) -> None:
    data = edit(clean, lambda d: d["images"][0].update(height=d["images"][0]["height"] * 2))
    h, w = data["images"][0]["height"], data["images"][0]["width"]
    where = f"{clean}/train/a0.png is {h // 2} x {w}, {FILE} says {h} x {w}"
    remedy = "correct height and width; check the boxes of turned pictures"
    for full in (True, False):
        row = ("wrong-size", "error", "train", 1, "boxes of 1 images lie in the wrong place", remedy, (where,))
        assert only(examine(clean, full=full), ok=False) == row


def test_size_of_a_picture_that_is_turned_by_exif(clean: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(paint(77, (40, 60))).save(clean / "train" / "a0.png", exif=exif)
    data = edit(clean, lambda d: d["images"][0].update(height=40, width=60))
    for a in data["annotations"]:
        if a["image_id"] == 1:
            a["bbox"] = [a["category_id"], 1, 30, 30 + a["id"] / 100]
    edit(clean, lambda d: d.update(annotations=data["annotations"]))
    examples = only(examine(clean), ok=False)[-1]
    assert examples == (f"{clean}/train/a0.png is 60 x 40, {FILE} says 40 x 60; it is turned by its EXIF orientation",)


def test_duplicate_within_a_split(clean: Path) -> None:
    shutil.copy(clean / "train" / "a0.png", clean / "train" / "a3.png")
    edit(clean, lambda d: d["images"].append({**d["images"][0], "id": 9, "file_name": "a3.png"}))
    report = examine(clean)
    kinds = {f.kind: f for f in report.findings}
    assert set(kinds) == {"duplicate", "empty-image"}
    expected = (
        "duplicate",
        "warning",
        "train",
        1,
        "1 of 4 images count more than once",
        "remove the copies",
        ("train a3.png = train a0.png",),
    )
    assert astuple(kinds["duplicate"])[:-1] == expected


def copy_into(root: Path, split: str, name: str, source: Path) -> None:
    """Replace a picture of `split`, resized so that its boxes stay right."""
    shutil.copy(source, root / split / name)
    h, w = np.asarray(Image.open(source)).shape[:2]

    def change(data: dict[str, Any]) -> None:
        image = next(i for i in data["images"] if i["file_name"] == name)
        image.update(height=h, width=w)
        for k, a in enumerate(a for a in data["annotations"] if a["image_id"] == image["id"]):
            a["bbox"] = [1, 1, 20, 10 + k]

    edit(root, change, split)


def test_leak_between_splits(clean: Path) -> None:
    copy_into(clean, "test", "c1.png", clean / "train" / "a2.png")
    for full in (True, False):
        cost = "scores on test are too high: 1 of 3 images are in train"
        row = ("leak", "error", "test", 1, cost, "remove them from one of the two", ("test c1.png = train a2.png",))
        assert only(examine(clean, full=full), ok=False) == row


def test_a_test_split_that_is_a_copy_of_train(clean: Path) -> None:
    shutil.rmtree(clean / "test")
    shutil.copytree(clean / "train", clean / "test")
    cost = "scores on test are far too high: all 3 of its images are in train"
    pairs = tuple(f"test a{k}.png = train a{k}.png" for k in range(3))
    assert only(examine(clean), ok=False) == ("copied-split", "error", "test", 3, cost, "make a new test split", pairs)


def test_near_copies(clean: Path) -> None:
    h, w = scenes(0)[0][1]
    soft = Image.fromarray(paint(0, (6, 6))).resize((4 * w, 4 * h), Image.Resampling.BICUBIC)
    soft.save(clean / "train" / "a0.png")
    edit(clean, lambda d: d["images"][0].update(height=4 * h, width=4 * w))
    soft.resize((111, 97), Image.Resampling.BILINEAR).save(clean / "near.jpg", quality=60)
    (clean / "valid" / "b0.png").unlink()
    edit(clean, lambda d: d["images"][0].update(file_name="b0.jpg"), "valid")
    (clean / "near.jpg").rename(clean / "valid" / "b0.jpg")
    edit(clean, lambda d: d["images"][0].update(height=97, width=111), "valid")
    cost = "scores on valid may be too high: 1 of 3 images look like train"
    row = ("near-leak", "warning", "valid", 1, cost, "keep such images in one split", ("valid b0.jpg = train a0.png",))
    assert only(examine(clean), ok=True) == row
    assert examine(clean, full=False).findings == ()


def test_flat_and_unlike_pictures_are_no_copies() -> None:
    rng = np.random.default_rng(0)
    flat = [np.full((40, 40, 3), 100 + k, np.uint8) for k in range(3)]
    noisy = [rng.integers(0, 256, (40, 40, 3), np.uint8) for _ in range(3)]
    thumbs = np.array([shrink(p) for p in [*flat, *noisy, noisy[1]]])
    assert _first_alike(thumbs) == [None, None, None, None, None, None, 4]


def set_box(box: list[float], index: int = 1) -> Callable[[dict[str, Any]], None]:
    return lambda data: data["annotations"][index].update(bbox=box)


def test_boxes_outside_and_off_the_image(clean: Path) -> None:
    h, w = scenes(0)[0][1]
    edit(clean, set_box([w - 10, 2, 20, 12]))
    n = objects(clean)
    where = f"{FILE} annotation 1 has box {w - 10}, 2, {w + 10}, 14, 10.0 pixels outside of a picture {h} high and {w} wide"
    row = ("box-outside", "warning", "train", 1, f"1 of {n} boxes are clipped", "check whether they belong to this image", (where,))
    assert only(examine(clean), ok=True) == row
    edit(clean, set_box([2, h, 20, 12]))
    where = f"{FILE} annotation 1 has box 2, {h}, 22, {h + 12}, outside of a picture {h} high and {w} wide"
    row = ("box-off-image", "warning", "train", 1, f"1 of {n} boxes are dropped", "correct or remove them", (where,))
    assert only(examine(clean), ok=True) == row
    edit(clean, set_box([-1, 2, 20, 12]))  # tools round to whole pixels
    assert examine(clean).findings == ()


def test_degenerate_box(clean: Path) -> None:
    edit(clean, set_box([3, 4, 0, 12]))
    row = ("degenerate-box", "warning", "train", 1, f"1 of {objects(clean)} boxes are dropped", "correct or remove them")
    assert only(examine(clean), ok=True) == (*row, (f"{FILE} annotation 1 is 0 wide and 12 high",))


def test_duplicate_annotation(clean: Path) -> None:
    edit(clean, lambda d: d["annotations"].append({**d["annotations"][2], "id": 99}))
    n = objects(clean)
    row = ("duplicate-annotation", "warning", "train", 1, f"1 of {n} boxes are counted twice and lower AP", "remove the copies")
    assert only(examine(clean), ok=True) == (*row, (f"{FILE} annotation {n - 1} = annotation 2",))


def test_wrong_class_number(clean: Path) -> None:
    edit(clean, lambda d: d["annotations"][1].update(category_id=12))
    where = f"coco: {FILE} annotation 1 has category 12, but the file lists 3 classes (0-2)"
    row = (
        "wrong-class",
        "error",
        "train",
        1,
        "1 annotations are lost",
        "add the class to the train split, or correct the number",
        (where,),
    )
    assert only(examine(clean), ok=False) == row


def test_class_without_objects(clean: Path) -> None:
    edit(clean, lambda d: d.update(annotations=[a for a in d["annotations"] if a["category_id"] != 1]), "valid")
    row = (
        "unused-class",
        "warning",
        "valid",
        1,
        "1 of 3 classes are not learnt or not scored",
        "add examples, or remove the class",
        ("bee (id 1)",),
    )
    assert only(examine(clean), ok=True) == row


def test_classes_of_one_name(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"train": scenes(0), "valid": scenes(1, 3, "b"), "test": scenes(2, 3, "c")})
    text = (tmp_path / "data.yaml").read_text()
    (tmp_path / "data.yaml").write_text(text.replace("bee", "ant"))
    report = examine(tmp_path)
    told = [(f.severity, f.split, f.examples) for f in report.findings if f.kind == "repeated-class"]
    assert told == [("warning", split, ("ant (2 times)",)) for split in ("train", "valid", "test")]
    assert report.classes["ant"]["train"] == sum(c in (0, 1) for _, _, objects in scenes(0) for c, _ in objects)


def test_imbalance(clean: Path) -> None:
    def crowd_of_ants(data: dict[str, Any]) -> None:
        rare = [a for a in data["annotations"] if a["category_id"] == 1][:2]
        ants = [{**rare[0], "category_id": 0, "bbox": [0, 0, 10 + k / 8, 20], "id": 100 + k} for k in range(50)]
        cats = [{**rare[0], "category_id": 2, "bbox": [0, 0, 9, 9 + k], "id": 200 + k} for k in range(2)]
        data["annotations"] = [*rare, *ants, *cats]

    edit(clean, crowd_of_ants)
    findings = {f.kind: f for f in examine(clean).findings if f.kind != "empty-image"}
    remedy = "train with class-balanced sampling, or collect more of them"
    row = ("imbalance", "warning", "train", 1, "rare classes score low", remedy, ("ant 50 : bee 2, a ratio of 25",))
    assert {k: astuple(f)[:-1] for k, f in findings.items()} == {"imbalance": row}


def test_empty_image(clean: Path) -> None:
    edit(clean, lambda d: d["images"].append({"id": 9, "file_name": "a9.png", "height": 48, "width": 64}))
    save(clean / "train" / "a9.png", 555)
    row = (
        "empty-image",
        "note",
        "train",
        1,
        "none: 1 of 4 images teach background",
        "check that they show no object",
        (f"{clean}/train/a9.png",),
    )
    assert only(examine(clean), ok=True) == row


def test_unlisted_image(clean: Path) -> None:
    file = save(clean / "valid" / "extra.png", 555)
    row = (
        "unlisted-image",
        "warning",
        "valid",
        1,
        "1 pictures of the folder are not used",
        "annotate them, or add them as background",
        (str(file),),
    )
    assert only(examine(clean), ok=True) == row


def test_tiny_object(clean: Path) -> None:
    h, w = scenes(0)[0][1]
    edit(clean, set_box([2, 3, w / 100, h / 2]))
    cost, remedy = f"1 of {objects(clean)} objects are hardly seen", "use a larger input size, or tiles"
    row = ("tiny-object", "warning", "train", 1, cost, remedy, (f"{FILE} annotation 1 is 3.8 pixels at 384 x 384",))
    assert only(examine(clean), ok=True) == row
    assert examine(clean, size_hw=(64, 512)).findings == ()
    assert only(examine(clean, size_hw=(512, 384)), ok=True)[-1] == (f"{FILE} annotation 1 is 3.8 pixels at 512 x 384",)


def test_crowd(clean: Path) -> None:
    edit(clean, lambda d: d["annotations"].append({**d["annotations"][1], "id": 99, "iscrowd": 1, "bbox": [-30, 0, 1, 1]}))
    row = ("crowd", "note", "train", 1, "1 regions are left out of training and ignored by scores", "nothing")
    assert only(examine(clean), ok=True) == (*row, (f"{FILE} annotation {objects(clean) - 1}",))


def test_objects_without_outline(clean: Path) -> None:
    def outline_all_but_one(data: dict[str, Any]) -> None:
        for a in data["annotations"][:-1]:
            x, y, w, h = a["bbox"]
            a["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]

    edit(clean, outline_all_but_one)
    n = objects(clean)
    row = ("no-outline", "warning", "train", 1, f"1 of {n} masks are filled boxes", "draw outlines, or train boxes only")
    assert only(examine(clean), ok=True) == (*row, (f"{FILE} annotation {n - 1}",))


NOTES = [
    (lambda d: d.update(info={"year": "2023"}), "year-is-text", f"coco: {FILE} has info.year '2023' as text"),
    (lambda d: d["annotations"][1].update(id=0), "annotation-id-0", f"coco: {FILE} annotation 1 has id 0"),
    (lambda d: d["annotations"][1].update(id=1), "annotation-id-repeated", f"coco: {FILE} repeats 1 annotation ids"),
]


@pytest.mark.parametrize(("change", "kind", "where"), NOTES)
def test_traps_of_other_tools(clean: Path, change: Callable[[dict[str, Any]], Any], kind: str, where: str) -> None:
    edit(clean, change)
    row = only(examine(clean), ok=True)
    assert (row[0], row[1], row[2], row[-1]) == (kind, "note", "train", (where,))


def test_missing_splits(clean: Path) -> None:
    shutil.rmtree(clean / "test")
    cost = "nothing says when to stop, or how good the result is"
    assert only(examine(clean), ok=True) == ("no-split", "note", "test", 1, cost, "add a test split", (f"{clean} has train, valid",))


def test_a_broken_file_hides_only_its_split(clean: Path) -> None:
    file = clean / "valid" / "_annotations.coco.json"
    file.write_text('{"images": [')
    report = examine(clean)
    where = f"{file}: broken JSON at line 1 column 13: Expecting value; export it again"
    row = ("broken-file", "error", "valid", 1, "the valid split cannot be used", "export it again", (where,))
    assert only(report, ok=False) == row
    assert list(report.splits) == ["train", "test"]


def test_yolo_label_without_image(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"train": scenes(0), "valid": scenes(1, 3, "b"), "test": scenes(2, 3, "c")})
    (tmp_path / "train" / "labels" / "z.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    row = ("label-without-image", "warning", "train", 1, "1 label files are not used", "add the pictures, or remove the files")
    assert only(examine(tmp_path), ok=True) == (*row, ("yolo: train/labels/z.txt belongs to no picture",))


def test_report_as_text_and_json(clean: Path) -> None:
    for k in range(12):
        save(clean / "train" / f"x{k:02d}.png", 600 + k)
    (clean / "valid" / "b1.png").unlink()
    report = examine(clean, size_hw=(640, 512))
    n = {s: objects(clean, s) for s in report.splits}
    lines = report.to_text().splitlines()
    assert lines[0] == f"{clean}: coco, looked at for an input of 640 x 512: 1 error, 1 warning, 0 notes"
    assert lines[2:6] == [
        "split  images  objects  empty",
        f"train       3  {n['train']:7d}      0",
        f"valid       3  {n['valid']:7d}      0",
        f"test        3  {n['test']:7d}      0",
    ]
    assert lines[7] == "class  train  valid  test"
    assert lines[8].split() == ["ant", *(str(v) for v in report.classes["ant"].values())]
    assert lines[12:16] == [
        "ERROR missing-image in valid: 1",
        "    cost: 1 of 3 images are lost",
        "    do: copy the files there, or remove their entries",
        f"    {clean}/valid/b1.png (valid/_annotations.coco.json)",
    ]
    assert lines[17] == "WARNING unlisted-image in train: 12"
    assert lines[20:31] == [*(f"    {clean}/train/x{k:02d}.png" for k in range(10)), "    ... and 2 more"]
    again = json.loads(json.dumps(report.to_dict()))
    assert (again["ok"], again["splits"], again["findings"][1]["count"]) == (False, report.splits, 12)
