"""YOLO: a data.yaml that names folders and classes, one text file of boxes or polygons beside each picture."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from rapidetr.core.errors import BackendMissing, DatasetError
from rapidetr.core.labels import LabelSpace
from rapidetr.data.files import SPLIT_WORDS, TEXT_BYTES, Source, is_hidden, list_images, locate, read_size_hw, read_text, split_name
from rapidetr.data.records import Annotation, Dataset, Flaw, ImageRecord, Problems, check_length, describe_ids, enclose

MAX_DEPTH = 4  # of lists and tables in data.yaml; PyYAML takes minutes over thousands
MAX_PART = 2.0  # coordinates a little outside are clipped later; beyond this they were written in pixels
USUAL_NAMES = ("data.yaml", "dataset.yaml", "data.yml", "dataset.yml")


def find_yolo(path: Path) -> dict[str, Source]:
    """Splits of a folder with a data.yaml, or of the file itself; empty when it is no YOLO dataset."""
    files = [path] if path.is_file() else sorted(f for f in path.iterdir() if f.is_file())
    files = [f for f in files if f.suffix.lower() in (".yaml", ".yml") and _mentions_names(f)]
    described = {f: data for f in files if _is_yolo(data := read_yaml(f))}
    usual = [f for f in described if f.name in USUAL_NAMES] or list(described)
    if not usual:
        return {}
    if len(usual) > 1:
        raise DatasetError(f"{path}: {', '.join(f.name for f in usual)} all describe a YOLO dataset; pass one of them as the path")
    return _find_folders(usual[0], described[usual[0]])


def _mentions_names(file: Path) -> bool:
    """Whether it is worth parsing; folders may hold YAML files of other programs, broken ones too."""
    with file.open("rb") as stream:
        return re.search(rb"(?m)^\W*names\W*:", stream.read(TEXT_BYTES)) is not None


def _is_yolo(data: Any) -> bool:
    return isinstance(data, dict) and "names" in data and any(key in SPLIT_WORDS for key in data)


def read_yaml(file: Path) -> Any:
    """What a YAML file says, every scalar as text (a class may be called `no`); aliases are refused."""
    text = read_text(file)
    try:
        import yaml
    except ImportError:
        raise BackendMissing("reading data.yaml needs PyYAML; install it with: pip install 'rapidetr[train]'") from None
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.BaseLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > MAX_DEPTH:
                break
        else:
            return yaml.load(text, Loader=yaml.BaseLoader)  # builds text, lists and dicts only
    except (yaml.YAMLError, ValueError) as problem:
        mark = getattr(problem, "problem_mark", None)
        place = f"line {mark.line + 1} column {mark.column + 1}" if mark else type(problem).__name__
        raise DatasetError(f"{file}: broken YAML at {place}; expected train, val, names") from None
    raise DatasetError(f"{file}: line {event.start_mark.line + 1} has a YAML alias, or lists in lists; write plain lists")


def _find_folders(file: Path, data: dict[str, Any]) -> dict[str, Source]:
    found: dict[str, Source] = {}
    for key, value in data.items():
        split = SPLIT_WORDS.get(key)
        entries = [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, str) and v]
        places = {v: _heal(file.parent, str(data.get("path") or ""), v, split or "") for v in entries}
        folders = tuple(place for place in places.values() if place)
        missing = tuple(f"{key}: {v}" for v, place in places.items() if place is None)
        if split and (folders or (missing and split != "test")):  # files often name a test split that nobody made
            found[split] = Source(split, "yolo", file.parent, file, folders, missing=missing)
    if not any(source.folders for source in found.values()):
        raise DatasetError(f"{file}: none of its folders is there, as written or beside the file; expected images of train and val")
    return found


def _heal(base: Path, start: str, entry: str, split: str) -> Path | None:
    """The folder or list that data.yaml means; beside the file first, since the file may come from another machine.

    Of a written path ever shorter ends are looked for beside the file, as long as they still name the split or are all
    that was written relative to `path:`.
    """
    entry, start = entry.replace("\\", "/"), start.replace("\\", "/")
    parts = [p for p in f"{start}/{entry}".split("/") if p not in ("", ".", "..")]
    own = len([p for p in entry.split("/") if p not in ("", ".", "..")])
    for i in range(len(parts)):
        tail = parts[i:]
        if (len(tail) < own or entry.startswith("/")) and not any(split_name(p) == split for p in tail):
            break
        if (base / Path(*tail)).exists():
            return base / Path(*tail)
    written = base / start / entry
    return written if written.exists() else None


def read_yolo(source: Source, labels: LabelSpace | None, problems: Problems) -> Dataset:
    """One split; class order is the order of `names`. Pictures without a label file are empty."""
    labels = labels or read_names(source.annotations)
    for entry in source.missing:
        told = f"has {entry[:200]!r}, which is neither beside it nor as written; correct the path, or remove the entry"
        problems.add(source.name(source.annotations), Flaw("missing-folder", told))
    pictures = [p for folder in source.folders for p in _list_pictures(folder, source, problems)]
    records = []
    for image_id, picture in enumerate(pictures, 1):
        file = label_file(picture)
        try:
            size_hw, annotations = _read_labels(picture, file, source, labels, problems)
        except Flaw as flaw:
            problems.add(source.name(picture), flaw)
            continue
        fields: dict[str, Any] = {"path": str(picture), "image_id": image_id, "split": source.split, "size_hw": size_hw}
        records.append(ImageRecord.build(annotations, **fields, file=source.name(file), unit="line"))
    _note_orphans(pictures, source, problems)
    return Dataset(str(source.root), source.split, "yolo", tuple(records), labels, tuple(problems.found))


def read_names(file: Path) -> LabelSpace:
    """Classes of a data.yaml; a table of names may leave numbers out."""
    data = read_yaml(file)
    names, count = data["names"], data.get("nc")
    try:
        table = {int(k): v for k, v in (names.items() if isinstance(names, dict) else enumerate(names))}
        wanted = len(table) if count is None else int(count)
    except (TypeError, ValueError):
        table, wanted = {}, 0
    if isinstance(names, str) or not table or not all(isinstance(v, str) for v in table.values()):
        found = f"names {str(names)[:80]} and nc {str(count)[:20]}"
        raise DatasetError(f"yolo: {file.name} has {found}; expected a list or a table of names, and their number")
    if wanted != len(table):
        raise DatasetError(f"yolo: {file.name} has nc {wanted}, but names {len(table)} classes; make the two agree")
    return LabelSpace.contiguous([table[k] for k in sorted(table)], dataset_ids=sorted(table))


def label_file(picture: Path) -> Path:
    """`images` becomes `labels` in the path, at its last place; else the text file lies beside the picture."""
    beside, parts = picture.with_suffix(".txt"), list(picture.parts)
    if "images" in parts[:-1] and not beside.is_file():
        parts[len(parts) - 2 - parts[-2::-1].index("images")] = "labels"
        return Path(*parts).with_suffix(".txt")
    return beside


def _list_pictures(folder: Path, source: Source, problems: Problems) -> list[Path]:
    """Pictures of a folder, or of a text file with one path a line."""
    if folder.is_dir():
        return list_images(folder)
    pictures = []
    for number, line in enumerate(read_text(folder).splitlines(), 1):
        name = line.strip()
        path = locate(name, source, (folder.parent, source.root))
        if path is not None:
            pictures.append(Path(path))
        elif name:
            problems.add(
                f"{source.name(folder)} line {number}",
                Flaw("unsafe-path", f"has {name[:200]!r}; expected a name inside the dataset folder"),
            )
    return pictures


def _read_labels(
    picture: Path, file: Path, source: Source, labels: LabelSpace, problems: Problems
) -> tuple[tuple[int, int] | None, list[Annotation]]:
    try:
        lines = read_text(file).splitlines() if file.is_file() else []
        if not any(line.strip() for line in lines):
            return None, []
        size_hw = read_size_hw(picture)
    except DatasetError as problem:
        raise Flaw("unreadable-image", f"cannot be used with its labels: {problem}") from None
    annotations = []
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                annotations.append(_read_line(number, line, size_hw, labels, source.annotations.name))
        except Flaw as flaw:
            problems.add(f"{source.name(file)} line {number}", flaw)
    return size_hw, annotations


def _read_line(number: int, line: str, size_hw: tuple[int, int], labels: LabelSpace, yaml_name: str) -> Annotation:
    """A box (class, centre x, centre y, width, height) or a polygon (class, x, y, x, y, ...) in parts of the picture."""
    try:
        values = [float(v) for v in line.split()]
    except ValueError:
        raise Flaw("bad-line", f"is {line.strip()[:80]!r}; expected numbers") from None
    if not 0 <= values[0] < 1e6 or values[0] % 1 or not all(abs(v) <= MAX_PART for v in values[1:]):
        raise Flaw("bad-line", f"is {line.strip()[:80]!r}; expected a whole class number and coordinates as parts of the picture, 0 to 1")
    if int(values[0]) not in labels.dataset_ids:
        raise Flaw("wrong-class", f"has class {int(values[0])}, but {yaml_name} names {describe_ids(labels.dataset_ids)}")
    class_id = labels.dataset_ids.index(int(values[0]))
    height, width = size_hw
    if len(values) == 5:
        x, y, w, h = values[1] * width, values[2] * height, values[3] * width, values[4] * height
        if min(w, h) < 0:
            raise Flaw("bad-box", f"has width {values[3]:g} and height {values[4]:g}; expected none below 0")
        return Annotation(number, class_id, (x - w / 2, y - h / 2, x + w / 2, y + h / 2))
    if len(values) < 7 or len(values) % 2 == 0:
        raise Flaw("bad-line", f"has {len(values)} numbers; expected 5 (class and box), or a class and at least 3 points")
    polygon = np.array(values[1:]).reshape(-1, 2) * [width, height]
    check_length((polygon,))
    return Annotation(number, class_id, enclose(polygon), (polygon,))


def _note_orphans(pictures: list[Path], source: Source, problems: Problems) -> None:
    expected = {label_file(p) for p in pictures}
    for folder in sorted({f.parent for f in expected}):
        for file in sorted(f for f in folder.glob("*.txt") if not is_hidden(f, folder)):
            if file not in expected and file.name != "classes.txt" and file not in source.folders:
                problems.note("label-without-image", source.name(file), "belongs to no picture")
