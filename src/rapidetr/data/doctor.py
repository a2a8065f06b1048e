"""The dataset doctor: what is wrong, at which file and line, what it costs, and what to do.

    read every split leniently → look at every picture once → check → one Finding per kind and split → Report

Checks yield (kind, example); the table below says how bad a kind is. Errors make scores or training wrong, warnings cost
accuracy, notes are good to know.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rapidetr.core.errors import DatasetError
from rapidetr.data.checks import check_annotations, check_classes, check_folders, check_pictures
from rapidetr.data.leaks import check_copies
from rapidetr.data.pictures import Look, look_at
from rapidetr.data.read import find_splits, read_source
from rapidetr.data.records import Dataset

EXAMPLES = 10
Found = dict[tuple[str, str, str], list[tuple[str, str]]]  # (kind, split, other split) -> examples, each with its picture or ""
SEVERITIES = ("error", "warning", "note")
# kind: severity, what it costs (n = count, of = what there is), what to do
KINDS: dict[str, tuple[str, str, str]] = {
    "broken-file": ("error", "the {split} split cannot be used", "export it again"),
    "empty-split": ("error", "the {split} split cannot be used", "add images to it, or remove it"),
    "no-objects": (
        "error",
        "there is nothing to learn: all {of} images of {split} are without objects",
        "see where annotations are expected",
    ),
    "missing-folder": ("error", "all images of {n} folders are lost", "correct the path, or remove the entry"),
    "unknown-image": ("error", "{n} annotations are lost", "list the image, or remove the annotations"),
    "wrong-class": ("error", "{n} annotations are lost", "add the class to the train split, or correct the number"),
    "bad-box": ("error", "{n} annotations are lost", "correct the numbers"),
    "bad-line": ("error", "{n} annotations are lost", "correct the line"),
    "bad-outline": ("error", "{n} annotations are lost", "draw the outline again, or remove it"),
    "bad-annotation": ("error", "{n} annotations are lost", "export the file again"),
    "bad-image": ("error", "{n} images and their annotations are lost", "correct the entry"),
    "bad-xml": ("error", "{n} images and their annotations are lost", "export the file again"),
    "missing-annotation": ("error", "{n} images are lost", "add the file, or take the image off the list"),
    "unsafe-path": ("error", "{n} images and their annotations are lost", "move the images into the dataset folder"),
    "missing-image": ("error", "{n} of {of} images are lost", "copy the files there, or remove their entries"),
    "unreadable-image": ("error", "{n} of {of} images are lost", "replace the files, or remove their entries"),
    "wrong-size": ("error", "boxes of {n} images lie in the wrong place", "correct height and width; check the boxes of turned pictures"),
    "copied-split": ("error", "scores on {split} are far too high: all {of} of its images are in {other}", "make a new {split} split"),
    "leak": ("error", "scores on {split} are too high: {n} of {of} images are in {other}", "remove them from one of the two"),
    "near-leak": (
        "warning",
        "scores on {split} may be too high: {n} of {of} images look like {other}",
        "keep such images in one split",
    ),
    "duplicate": ("warning", "{n} of {of} images count more than once", "remove the copies"),
    "near-duplicate": ("warning", "{n} of {of} images add little", "remove them if they are copies"),
    "box-off-image": ("warning", "{n} of {of} boxes are dropped", "correct or remove them"),
    "degenerate-box": ("warning", "{n} of {of} boxes are dropped", "correct or remove them"),
    "box-outside": ("warning", "{n} of {of} boxes are clipped", "check whether they belong to this image"),
    "duplicate-annotation": ("warning", "{n} of {of} boxes are counted twice and lower AP", "remove the copies"),
    "no-outline": ("warning", "{n} of {of} masks are filled boxes", "draw outlines, or train boxes only"),
    "repeated-class": ("warning", "tables by class show them as one", "give each class its own name, or merge them"),
    "unused-class": ("warning", "{n} of {of} classes are not learnt or not scored", "add examples, or remove the class"),
    "imbalance": ("warning", "rare classes score low", "train with class-balanced sampling, or collect more of them"),
    "tiny-object": ("warning", "{n} of {of} objects are hardly seen", "use a larger input size, or tiles"),
    "unlisted-image": ("warning", "{n} pictures of the folder are not used", "annotate them, or add them as background"),
    "label-without-image": ("warning", "{n} label files are not used", "add the pictures, or remove the files"),
    "no-split": ("note", "nothing says when to stop, or how good the result is", "add a {split} split"),
    "empty-image": ("note", "none: {n} of {of} images teach background", "check that they show no object"),
    "crowd": ("note", "{n} regions are left out of training and ignored by scores", "nothing"),
    "year-is-text": ("note", "none here; some COCO tools refuse it", "write info.year as a number"),
    "annotation-id-0": ("note", "none here; pycocotools counts such an object as missed", "number annotations from 1"),
    "annotation-id-repeated": ("note", "none here; pycocotools mixes such objects up", "give each annotation its own id"),
}


@dataclass(frozen=True)
class Finding:
    """Something found `count` times in one split; the first examples name file and line, `pictures` show it."""

    kind: str
    severity: str
    split: str
    count: int
    cost: str
    remedy: str
    examples: tuple[str, ...]
    pictures: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """What `examine` found. `splits`: images, objects, empty images · `classes`: objects by class and split."""

    path: str
    format: str
    size_hw: tuple[int, int]
    splits: dict[str, dict[str, int]]
    classes: dict[str, dict[str, int]]
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """No errors; warnings and notes may remain."""
        return all(f.severity != "error" for f in self.findings)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ok": self.ok}

    def to_text(self) -> str:
        """Tables of splits, classes and findings, for a terminal."""
        rows = [["split", "images", "objects", "empty"], *([s, *map(str, c.values())] for s, c in self.splits.items())]
        classes = [["class", *self.splits], *([name, *map(str, c.values())] for name, c in self.classes.items())]
        numbers = [(sum(f.severity == s for f in self.findings), s) for s in SEVERITIES]
        counts = ", ".join(f"{n} {s}{'' if n == 1 else 's'}" for n, s in numbers)
        head = f"{self.path}: {self.format}, looked at for an input of {self.size_hw[0]} x {self.size_hw[1]}: {counts}"
        return "\n\n".join([head, _table(rows), _table(classes), *map(_paragraph, self.findings)])


def _table(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]) for row in rows)


def _paragraph(finding: Finding) -> str:
    more = [f"... and {finding.count - len(finding.examples)} more"] if finding.count > len(finding.examples) else []
    lines = [
        f"{finding.severity.upper()} {finding.kind} in {finding.split}: {finding.count}",
        f"cost: {finding.cost}",
        f"do: {finding.remedy}",
    ]
    return "\n    ".join([*lines, *finding.examples, *more])


def examine(
    path: str | Path,
    *,
    size_hw: tuple[int, int] = (384, 384),
    full: bool = True,
    format: str | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Report:
    """Everything that is wrong with the dataset at `path`, for a network input of `size_hw`.

    `full` decodes every picture and looks for near duplicates; without it only headers are read and exact copies found.
    `progress` gets (pictures done, of how many, path). DatasetError only when no dataset is recognised at all.
    """
    found: Found = defaultdict(list)
    datasets = _read_splits(path, format, found)
    looks = _look_at_all(datasets, full, progress)
    for split, dataset in datasets.items():
        for problem in dataset.problems:
            found[problem.kind, split, ""].append((problem.message, ""))
        for checks in (check_pictures, check_annotations):
            for record, look in zip(dataset.images, looks[split], strict=True):
                for kind, example in checks(record, look, size_hw, dataset.has_outlines):
                    found[kind, split, ""].append((example, record.path))
        for kind, example in check_classes(dataset):
            found[kind, split, ""].append((example, ""))
    for kind, split, example in check_folders(datasets):
        found[kind, split, ""].append((example, ""))
    for kind, split, other, example in check_copies(datasets, looks):
        found[kind, split, other].append((example, ""))
    return _report(path, size_hw, datasets, found)


def _read_splits(path: str | Path, format: str | None, found: Found) -> dict[str, Dataset]:
    """Every readable split, with the classes of the first one (train, where there is one)."""
    datasets: dict[str, Dataset] = {}
    for split, source in find_splits(path, format=format).items():
        labels = next((d.labels for d in datasets.values()), None)
        try:
            datasets[split] = read_source(source, labels=labels, on_error="skip")
            if not datasets[split].images:
                found["empty-split", split, ""].append((f"{path} has a {split} split that lists no image", ""))
        except DatasetError as problem:
            found["broken-file", split, ""].append((str(problem), ""))
    for split in ("train", "valid", "test"):
        if split not in datasets and ("broken-file", split, "") not in found:
            found["no-split", split, ""].append((f"{path} has {', '.join(datasets) or 'no readable split'}", ""))
    return datasets


def _look_at_all(datasets: dict[str, Dataset], full: bool, progress: Callable[[int, int, str], None] | None) -> dict[str, list[Look]]:
    looks: dict[str, list[Look]] = {split: [] for split in datasets}
    total, done = sum(map(len, datasets.values())), 0
    for split, dataset in datasets.items():
        for record in dataset.images:
            looks[split].append(look_at(record.path, full))
            done += 1
            if progress:
                progress(done, total, record.path)
    return looks


def _report(path: str | Path, size_hw: tuple[int, int], datasets: dict[str, Dataset], found: Found) -> Report:
    counts = {
        s: {"images": len(d), "objects": sum(map(len, d.images)), "empty": sum(not len(r) for r in d.images)} for s, d in datasets.items()
    }
    names = next((d.labels.names for d in datasets.values()), ())
    tables = {split: d.class_counts.tolist() for split, d in datasets.items()}
    by_class = {name: dict.fromkeys(tables, 0) for name in names}
    for split, counted in tables.items():
        for name, count in zip(names, counted, strict=True):
            by_class[name][split] += count
    findings = [_finding(key, examples, counts, len(names)) for key, examples in found.items()]
    findings.sort(key=lambda f: SEVERITIES.index(f.severity))
    form = next((d.format for d in datasets.values()), "")
    return Report(str(path), form, size_hw, counts, by_class, tuple(findings))


def _finding(key: tuple[str, str, str], seen: list[tuple[str, str]], counts: dict[str, dict[str, int]], classes: int) -> Finding:
    kind, split, other = key
    severity, cost, remedy = KINDS[kind]
    of = classes if "classes" in cost else counts.get(split, {}).get("images" if "images" in cost else "objects", 0)
    fill = {"n": len(seen), "of": of, "split": split, "other": other}
    examples = tuple(example for example, _ in seen[:EXAMPLES])
    pictures = tuple(dict.fromkeys(picture for _, picture in seen if picture))[:EXAMPLES]
    return Finding(kind, severity, split, len(seen), cost.format(**fill), remedy.format(**fill), examples, pictures)
