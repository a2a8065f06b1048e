"""Pascal VOC: JPEGImages, Annotations with one XML for each picture, ImageSets/Main with one list for each split; or all in one folder."""

from __future__ import annotations

import math
import re
from pathlib import Path
from xml.etree import ElementTree

from rapidetr.core.errors import DatasetError
from rapidetr.core.labels import LabelSpace
from rapidetr.data.files import SPLIT_WORDS, Source, is_hidden, is_inside, list_folders, list_images, read_text, split_name
from rapidetr.data.records import Annotation, Dataset, Flaw, ImageRecord, Problems

MAX_SIDE = 1e7


def find_voc(path: Path) -> dict[str, Source]:
    """Splits of a folder, or of the only VOC folder one or two levels below (VOCdevkit/VOC2012), or train/, valid/ and test/ with
    XML files beside the pictures, as Roboflow exports them; empty when there is none.
    """
    if not path.is_dir():
        return {}
    below = list_folders(path)
    beside = {split: Source(split, "voc", path, f, (f,)) for f in below if (split := split_name(f.name)) and _list_xml(f)}
    places = [path, *below, *(g for f in below for g in list_folders(f))]
    places = [f for f in places if (f / "Annotations").is_dir() and (f / "JPEGImages").is_dir()]
    if len(places) > 1:
        raise DatasetError(f"{path}: VOC data in {', '.join(str(p.relative_to(path)) for p in places)}; pass one of these folders")
    return _find_lists(places[0]) if places else beside


def _find_lists(root: Path) -> dict[str, Source]:
    """train, valid and test as listed; `trainval` stands in for a missing train, all XML files for missing lists."""
    lists = {f.stem: f for f in (root / "ImageSets" / "Main").glob("*.txt")}
    named: dict[str, Path | None] = {SPLIT_WORDS[stem]: file for stem, file in sorted(lists.items()) if stem in SPLIT_WORDS}
    if "train" not in named and ("trainval" in lists or not named):
        named["train"] = lists.get("trainval")
    folders = (root / "JPEGImages",)
    return {split: Source(split, "voc", root, root / "Annotations", folders, listing) for split, listing in named.items()}


def read_voc(source: Source, labels: LabelSpace | None, problems: Problems) -> Dataset:
    """One split. VOC lists its classes nowhere: they are the names in this split, sorted, unless `labels` is given."""
    pictures = {p.stem: p for p in list_images(source.folders[0])}
    trees = [(stem, tree) for stem in _list_stems(source) if (tree := _parse(stem, source, problems)) is not None]
    if labels is None:
        labels = LabelSpace.contiguous(sorted({_text(o, "name") for _, tree in trees for o in tree.iter("object")} - {""}))
    records = []
    for image_id, (stem, tree) in enumerate(trees, 1):
        file = source.name(source.annotations / f"{stem}.xml")
        picture = pictures.get(stem, source.folders[0] / f"{stem}.jpg")
        annotations = _read_objects(tree, file, labels, problems)
        records.append(
            ImageRecord.build(
                annotations, path=str(picture), image_id=image_id, split=source.split, size_hw=_read_size(tree), file=file, unit="object"
            )
        )
    return Dataset(str(source.root), source.split, "voc", tuple(records), labels, tuple(problems.found))


def _list_stems(source: Source) -> list[str]:
    if source.listing is None:
        return _list_xml(source.annotations)
    return [_stem(line.strip(), source) for line in read_text(source.listing).splitlines() if line.strip()]


def _list_xml(folder: Path) -> list[str]:
    return sorted(p.stem for p in folder.glob("*.xml") if not is_hidden(p, folder))


def _stem(line: str, source: Source) -> str:
    """The name in a line; lists of one class say 1, 0 or -1 behind it."""
    return line if (source.annotations / f"{line}.xml").is_file() else re.sub(r"\s+-?[01]$", "", line)


class _NoDoctype(ElementTree.TreeBuilder):
    """Refuses document types before they can define entities that grow without bound."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise Flaw("bad-xml", "has a document type; expected plain annotation elements")


def _parse(stem: str, source: Source, problems: Problems) -> ElementTree.Element | None:
    path = source.annotations / f"{stem}.xml"
    try:
        if not is_inside(path, source.annotations):
            raise Flaw("unsafe-path", f"lists {stem[:200]!r}; expected a name inside the dataset folder")
        if not path.is_file():
            raise Flaw("missing-annotation", "is not there; expected one XML file for each listed picture")
        return ElementTree.fromstring(read_text(path), ElementTree.XMLParser(target=_NoDoctype()))
    except ElementTree.ParseError as problem:
        line, column = problem.position
        problems.add(source.name(path), Flaw("bad-xml", f"is broken XML at line {line} column {column + 1}; export it again"))
    except DatasetError as problem:
        problems.add(source.name(path), Flaw("bad-xml", f"cannot be read: {problem}"))
    except Flaw as flaw:
        problems.add(source.name(source.listing or path) if flaw.kind == "unsafe-path" else source.name(path), flaw)
    return None


def _read_objects(tree: ElementTree.Element, file: str, labels: LabelSpace, problems: Problems) -> list[Annotation]:
    # The devkit counts pixels from 1; LabelImg, CVAT and Roboflow write the borders as they are.
    shift = 1.0 if _text(tree, "source/database").startswith("The VOC") else 0.0
    annotations = []
    for number, element in enumerate(tree.iter("object"), 1):
        try:
            name = _text(element, "name")
            if name not in labels.names:
                raise Flaw("wrong-class", f"has class {name[:80]!r}, which the train split does not have ({', '.join(labels.names)})")
            annotations.append(Annotation(number, labels.names.index(name), _read_box(element, shift)))
        except Flaw as flaw:
            problems.add(f"{file} object {number}", flaw)
    return annotations


def _read_box(element: ElementTree.Element, shift: float) -> tuple[float, float, float, float]:
    texts = [_text(element, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
    try:
        x0, y0, x1, y1 = (float(t) for t in texts)
    except ValueError:
        x0, y0, x1, y1 = (math.nan,) * 4
    if not (-MAX_SIDE < x0 <= x1 < MAX_SIDE and -MAX_SIDE < y0 <= y1 < MAX_SIDE):  # not true of NaN either
        raise Flaw("bad-box", f"has bndbox {texts}; expected xmin, ymin, xmax and ymax in pixels, each min below its max")
    return x0 - shift, y0 - shift, x1, y1


def _read_size(tree: ElementTree.Element) -> tuple[int, int] | None:
    height, width = _text(tree, "size/height"), _text(tree, "size/width")
    sides = [int(t) if t.isdecimal() and len(t) < 7 else 0 for t in (height, width)]
    return (sides[0], sides[1]) if min(sides) else None


def _text(element: ElementTree.Element, path: str) -> str:
    return (element.findtext(path) or "").strip()
