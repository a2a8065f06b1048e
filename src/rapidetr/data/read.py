"""A folder becomes records: which format it is, which splits it has, and what one of them says."""

from __future__ import annotations

from pathlib import Path

from rapidetr.core.errors import DatasetError
from rapidetr.core.labels import LabelSpace
from rapidetr.data.coco import find_coco, read_coco
from rapidetr.data.files import SPLIT_WORDS, Source
from rapidetr.data.records import Dataset, Problems
from rapidetr.data.voc import find_voc, read_voc
from rapidetr.data.yolo import find_yolo, read_yolo

FORMATS = {"coco": (find_coco, read_coco), "yolo": (find_yolo, read_yolo), "voc": (find_voc, read_voc)}
EXPECTED = (
    "expected COCO (train/_annotations.coco.json, annotations/instances_train2017.json or one JSON beside the images), "
    "YOLO (data.yaml) or Pascal VOC (JPEGImages, Annotations)"
)


def find_splits(path: str | Path, *, format: str | None = None) -> dict[str, Source]:
    """Where each split lies, train first. DatasetError when nothing or more than one format is recognised."""
    root = Path(path).expanduser()
    if format is not None and format not in FORMATS:
        raise DatasetError(f"dataset format is {format!r}; expected one of {', '.join(FORMATS)}")
    if not root.exists():
        raise DatasetError(f"{path}: no such file or folder; {EXPECTED}")
    found = {name: splits for name, (find, _) in FORMATS.items() if format in (None, name) and (splits := find(root))}
    if not found:
        raise DatasetError(f"{path}: no {format or 'known'} dataset is here; {EXPECTED}")
    if len(found) > 1:
        raise DatasetError(f"{path}: could be {' or '.join(found)}; say which with format=")
    splits = next(iter(found.values()))
    order = {"train": 0, "valid": 1, "test": 2}
    return dict(sorted(splits.items(), key=lambda item: (order.get(item[0], 3), item[0])))


def read_dataset(
    path: str | Path, split: str = "train", *, format: str | None = None, labels: LabelSpace | None = None, on_error: str = "raise"
) -> Dataset:
    """One split of the dataset at `path`, with the classes of its train split unless `labels` are given.

    `split`: train, valid (or val, validation), test, or the name of a folder. on_error="raise" stops at the first bad
    entry with a DatasetError that names file and line; "skip" leaves it out and lists it in `problems`. Pictures are not
    opened, except YOLO's for their size.
    """
    sources = find_splits(path, format=format)
    split = SPLIT_WORDS.get(split, split)
    if split not in sources:
        raise DatasetError(f"{path}: no {split} split; there is {', '.join(sources)}")
    source = sources[split]
    if labels is None and split != "train" and "train" in sources:
        labels = read_source(sources["train"], on_error="skip").labels
    return read_source(source, labels=labels, on_error=on_error)


def read_source(source: Source, *, labels: LabelSpace | None = None, on_error: str = "raise") -> Dataset:
    """One split that `find_splits` found; its own classes unless `labels` are given."""
    return FORMATS[source.format][1](source, labels, Problems(source.format, on_error))
