"""What the doctor checks, one function for each thing that can be looked at; each yields (kind, example)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from rapidetr.data.pictures import Look
from rapidetr.data.records import Dataset, ImageRecord
from rapidetr.pixels.find import SUFFIXES

OUTSIDE_PX = 1.0  # annotation tools round to whole pixels
TINY_PX = 4.0  # a quarter of a patch of the network input
RATIO = 20.0  # most frequent to rarest class


def check_pictures(record: ImageRecord, look: Look, size_hw: tuple[int, int], outlines: bool) -> Iterator[tuple[str, str]]:
    """The file itself: there, readable, as large as declared."""
    if look.missing:
        yield "missing-image", f"{record.path} ({record.file})"
    elif look.error:
        yield "unreadable-image", look.error
    elif record.size_hw and look.size_hw and record.size_hw != look.size_hw:
        turned = "; it is turned by its EXIF orientation" if record.size_hw == look.size_hw[::-1] else ""
        (h, w), (real_h, real_w) = record.size_hw, look.size_hw
        yield "wrong-size", f"{record.path} is {real_h} x {real_w}, {record.file} says {h} x {w}{turned}"
    if not len(record):
        yield "empty-image", record.path


def check_annotations(record: ImageRecord, look: Look, size_hw: tuple[int, int], outlines: bool) -> Iterator[tuple[str, str]]:
    """Each object: inside the picture, not empty, not repeated, large enough at the input size `size_hw`."""
    real_hw = look.size_hw or record.size_hw
    sides = record.boxes_xyxy_px[:, 2:] - record.boxes_xyxy_px[:, :2]
    first: dict[tuple[float, ...], int] = {}
    for i, box in enumerate(record.boxes_xyxy_px):
        place, text = record.place(i), ", ".join(f"{v:g}" for v in box)
        if record.crowd[i]:
            yield "crowd", place
            continue
        if real_hw:
            yield from _check_borders(box, real_hw, f"{place} has box {text}")
        if sides[i].min() <= 0:
            yield "degenerate-box", f"{place} is {sides[i][0]:g} wide and {sides[i][1]:g} high"
        elif real_hw and (small := (sides[i] * [size_hw[1] / real_hw[1], size_hw[0] / real_hw[0]]).min()) < TINY_PX:
            yield "tiny-object", f"{place} is {small:.1f} pixels at {size_hw[0]} x {size_hw[1]}"
        twin = first.setdefault((int(record.class_ids[i]), *box.tolist()), i)
        if twin != i:
            yield "duplicate-annotation", f"{place} = {record.unit} {record.numbers[twin]}"
        if outlines and (record.outlines is None or record.outlines[i] is None):
            yield "no-outline", place


def _check_borders(box: np.ndarray, real_hw: tuple[int, int], place: str) -> Iterator[tuple[str, str]]:
    height, width = real_hw
    beyond = max(float(v) for v in (-box[0], -box[1], box[2] - width, box[3] - height))
    picture = f"of a picture {height} high and {width} wide"
    if box[0] >= width or box[1] >= height or box[2] <= 0 or box[3] <= 0:
        yield "box-off-image", f"{place}, outside {picture}"
    elif beyond > OUTSIDE_PX:
        yield "box-outside", f"{place}, {beyond:.1f} pixels outside {picture}"


def check_classes(dataset: Dataset) -> Iterator[tuple[str, str]]:
    """Classes of one name, classes without objects, and how far the rest lie apart (in the train split, where it matters)."""
    counts, names = dataset.class_counts, dataset.labels.names
    if dataset.split == "train" and dataset.images and not dataset.class_counts.sum():
        first = dataset.images[0]
        yield "no-objects", f"{len(dataset)} images; those of {first.path} were looked for in {first.file}"
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield "repeated-class", f"{name} ({names.count(name)} times)"
    for i in np.flatnonzero(counts == 0):
        yield "unused-class", f"{names[i]} (id {dataset.labels.dataset_ids[i]})"
    seen = np.flatnonzero(counts)
    if dataset.split == "train" and len(seen) and counts[seen].max() > RATIO * counts[seen].min():
        most, least = int(seen[counts[seen].argmax()]), int(seen[counts[seen].argmin()])
        ratio = counts[most] / counts[least]
        yield "imbalance", f"{names[most]} {counts[most]} : {names[least]} {counts[least]}, a ratio of {ratio:.0f}"


def check_folders(datasets: Mapping[str, Dataset]) -> Iterator[tuple[str, str, str]]:
    """(kind, split, example): pictures that lie in a folder of the dataset and that no split lists."""
    listed = {os.path.abspath(r.path) for d in datasets.values() for r in d.images}
    owner = {os.path.dirname(os.path.abspath(r.path)): split for split, d in reversed(list(datasets.items())) for r in d.images}
    for folder, split in sorted(owner.items()):
        for file in sorted(Path(folder).iterdir()) if os.path.isdir(folder) else ():
            if file.suffix.lower() in SUFFIXES and str(file) not in listed:
                yield "unlisted-image", split, str(file)
