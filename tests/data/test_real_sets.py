"""The real datasets read completely, and the doctor says what is known about them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

from rapidetr.data import examine, find_splits, read_dataset

# pycocotools 2 turns its buffers into arrays in a way that numpy 2 warns about
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SIZES = {
    "bccd": {"train": (205, 2804), "valid": (87, 1137), "test": (72, 945)},
    "bccd_voc": {"train": (34, 626), "valid": (12, 236), "test": (14, 231)},
    "aquarium": {"train": (448, 3324), "valid": (127, 909), "test": (63, 582)},
    "aquarium_yolo": {"train": (40, 207), "valid": (16, 101), "test": (8, 60)},
    "cardamage": {"train": (200, 494), "valid": (80, 185)},
    "coco_real": {"train": (209, 1899)},
}


@pytest.mark.parametrize("name", SIZES)
def test_every_set_reads_without_a_word(shared: Path, name: str) -> None:
    path = shared / "data" / name
    assert list(find_splits(path)) == list(SIZES[name])
    for split, size in SIZES[name].items():
        dataset = read_dataset(path, split)
        assert (len(dataset), sum(map(len, dataset.images))) == size
        assert all(Path(r.path).is_file() for r in dataset.images)
        assert [p for p in dataset.problems if p.severity == "error"] == []


# the VOC corners are the same whole numbers; of the COCO boxes x and width are each rounded to 0.01 pixels
@pytest.mark.parametrize(("one", "other", "atol"), [("bccd", "bccd_voc", 0.0), ("aquarium", "aquarium_yolo", 0.0102)])
def test_two_formats_of_one_set_agree(shared: Path, one: str, other: str, atol: float) -> None:
    tables = []
    for name in (one, other):
        found = [r for split in SIZES[name] for r in read_dataset(shared / "data" / name, split).images]
        tables.append({Path(r.path).stem: r for r in found})
    assert set(tables[1]) <= set(tables[0])
    for stem, b in tables[1].items():
        a = tables[0][stem]
        assert a.class_ids.tolist() == b.class_ids.tolist()
        np.testing.assert_allclose(a.boxes_xyxy_px, b.boxes_xyxy_px, rtol=0, atol=atol)


def test_masks_of_real_annotations_equal_pycocotools(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = shared / "data" / "coco_real" / "train" / "_annotations.coco.json"
    theirs = COCO(str(file))
    capsys.readouterr()  # it prints
    table = list(theirs.dataset["annotations"])
    for record in read_dataset(file).images[:60]:
        expected = [theirs.annToMask(table[int(n)]) for n in record.numbers]
        assert np.array_equal(record.masks().dense(), np.array(expected, bool).reshape(-1, *record.size_hw))


def test_doctor_on_car_damage(shared: Path) -> None:
    report = examine(shared / "data" / "cardamage", full=False)
    assert report.ok
    assert [(f.kind, f.split, f.count, f.examples[0]) for f in report.findings] == [
        ("tiny-object", "train", 1, "train/_annotations.coco.json annotation 180 is 3.4 pixels at 384 x 384"),
        ("unused-class", "valid", 1, "airbag (id 1)"),
        ("no-split", "test", 1, f"{shared / 'data' / 'cardamage'} has train, valid"),
        ("year-is-text", "train", 1, "coco: train/_annotations.coco.json has info.year '2023' as text"),
        ("year-is-text", "valid", 1, "coco: valid/_annotations.coco.json has info.year '2023' as text"),
        ("annotation-id-0", "valid", 1, "coco: valid/_annotations.coco.json annotation 0 has id 0"),
    ]
    assert "car" not in report.classes


def test_doctor_finds_nothing_in_blood_cells(shared: Path) -> None:
    assert examine(shared / "data" / "bccd").findings == ()
