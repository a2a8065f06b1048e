"""COCO JSON: Roboflow's folders, the COCO 2017 layout, and a folder of pictures with one JSON file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from rapidetr.core.errors import ConfigError, DatasetError
from rapidetr.core.labels import LabelSpace
from rapidetr.core.masks import Masks, counts_of_rle
from rapidetr.data.files import SPLIT_WORDS, Source, list_folders, locate, read_json, split_name
from rapidetr.data.records import Annotation, Dataset, Flaw, ImageRecord, Outline, Problems, check_length, describe_ids, enclose

ROBOFLOW = "_annotations.coco.json"
Size = tuple[int, int] | None
MAX_PIXELS = 1 << 28  # of one picture; a declared size beyond it would ask for gigabytes of mask
OTHER_TASKS = ("captions", "person_keypoints", "image_info", "stuff", "panoptic")


def find_coco(path: Path) -> dict[str, Source]:
    """Splits of a folder or a JSON file; empty when it is no COCO dataset."""
    if path.is_file():
        if path.suffix.lower() != ".json":
            return {}
        return _name_splits([path], path.parent.parent if path.parent.name == "annotations" else path.parent, path.parent.name)
    found: dict[str, Source] = {}
    for folder in list_folders(path):
        split = split_name(folder.name)
        files = [] if folder.name == "annotations" else _coco_files(folder)
        if files and (split or files[0].name == ROBOFLOW):
            split = split or folder.name
            if split in found or len(files) > 1:
                _refuse(split, [*([found[split].annotations] if split in found else []), *files])
            found[split] = Source(split, "coco", path, files[0], (folder, folder / "images", path / "images", path))
    return found or _name_splits(_coco_files(path / "annotations") + _coco_files(path), path, path.name)


def _coco_files(folder: Path) -> list[Path]:
    """COCO files of one folder: Roboflow's alone where it is, then object annotations before those of other tasks."""
    if (folder / ROBOFLOW).is_file():
        return [folder / ROBOFLOW]
    files = [f for f in sorted(folder.glob("*.json")) if _looks_like_coco(f)] if folder.is_dir() else []
    return [f for f in files if not f.name.startswith(OTHER_TASKS)] or files


def _looks_like_coco(file: Path) -> bool:
    with file.open("rb") as stream:
        head = stream.read(4096)
    return re.match(rb'[\xef\xbb\xbf\s]*\{\s*"(images|annotations|categories|info|licenses|type)"', head) is not None


def _name_splits(files: list[Path], root: Path, folder_name: str) -> dict[str, Source]:
    """One split for each file, named by the file, else (a single file) by its folder, else train."""
    found: dict[str, Source] = {}
    for file in files:
        split = split_name(file.stem) or (SPLIT_WORDS.get(folder_name.lower().rstrip("0123456789"), "train") if len(files) == 1 else None)
        if split is None or split in found:
            _refuse(split or "train", files)
            continue
        places = [f for base in (root, root / "images") for f in list_folders(base) if split_name(f.name) == split]
        places.sort(key=lambda f: not file.stem.endswith(f.name))
        found[split] = Source(split, "coco", root, file, (*places, file.parent, root / "images", root))
    return found


def _refuse(split: str, files: Iterable[Path]) -> None:
    raise DatasetError(
        f"more than one annotation file could be the {split} split: {', '.join(map(str, files))}; pass one of them as the path"
    )


def read_coco(source: Source, labels: LabelSpace | None, problems: Problems) -> Dataset:
    """One split. Class order is by category id; an unused parent class is left out (see `own_labels`)."""
    data = read_json(source.annotations)
    file = source.name(source.annotations)
    for key in ("images", "annotations", "categories"):
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            raise DatasetError(f"coco: {file} has no list {key!r}; expected a COCO object annotation file")
    _note_oddities(data, file, problems)
    categories = _read_categories(data["categories"], file)
    if labels is None:
        labels = own_labels(categories, [a.get("category_id") for a in data["annotations"] if isinstance(a, dict)])
    images = _read_images(data["images"], source, file, problems)
    objects: dict[int | str, list[Annotation]] = {image_id: [] for image_id in images}
    index_of = _match_classes(categories, labels)
    for number, raw in enumerate(data["annotations"]):
        try:
            image_id, annotation = _read_annotation(number, raw, images, categories, index_of)
            objects[image_id].append(annotation)
        except Flaw as flaw:
            problems.add(f"{file} annotation {number}", flaw)
    records = tuple(
        ImageRecord.build(objects[i], path=path, image_id=i, split=source.split, size_hw=size_hw, file=file)
        for i, (path, size_hw) in images.items()
    )
    return Dataset(str(source.root), source.split, "coco", records, labels, tuple(problems.found))


def own_labels(categories: Mapping[int, Mapping[str, Any]], used: Iterable[Any]) -> LabelSpace:
    """Classes by rising category id, dataset ids kept, without an unused parent.

    Roboflow writes the group of all classes as one more category, which no annotation uses and the others name as their
    supercategory. Other classes without annotations stay.
    """
    used = {i for i in used if _is_int(i)}
    parents = {str(c.get("supercategory")) for c in categories.values() if c.get("supercategory") != c["name"]}
    ids = [i for i in sorted(categories) if i in used or categories[i]["name"] not in parents]
    return LabelSpace.contiguous([categories[i]["name"] for i in ids], dataset_ids=ids)


def _read_categories(raw: list[Any], file: str) -> dict[int, dict[str, Any]]:
    categories: dict[int, dict[str, Any]] = {}
    for number, category in enumerate(raw):
        if not isinstance(category, dict) or not _is_int(category.get("id")) or not isinstance(category.get("name"), str):
            raise DatasetError(f"coco: {file} category {number} is {str(category)[:80]}; expected a whole number 'id' and a text 'name'")
        if category["id"] in categories:
            raise DatasetError(f"coco: {file} category {number} repeats id {category['id']}; give each class its own id")
        categories[int(category["id"])] = category
    if not categories:
        raise DatasetError(f"coco: {file} lists no category; expected at least one in 'categories'")
    return categories


def _match_classes(categories: Mapping[int, Mapping[str, Any]], labels: LabelSpace) -> dict[int, int]:
    """Category id of this file -> class index, by id and name, else by name alone (splits may number differently)."""
    exact = {(i, n): k for k, (i, n) in enumerate(zip(labels.dataset_ids, labels.names, strict=True))}
    by_name = {n: k for k, n in enumerate(labels.names)}
    found = {i: exact.get((i, c["name"]), by_name.get(c["name"])) for i, c in categories.items()}
    return {i: k for i, k in found.items() if k is not None}


def _read_images(raw: list[Any], source: Source, file: str, problems: Problems) -> dict[int | str, tuple[str, Size]]:
    images: dict[int | str, tuple[str, Size]] = {}
    for number, image in enumerate(raw):
        try:
            image_id, path, size_hw = _read_image(image, source)
            if image_id in images:
                raise Flaw("bad-image", f"repeats id {image_id!r}; give each image its own id")
            images[image_id] = (path, size_hw)
        except Flaw as flaw:
            problems.add(f"{file} image {number}", flaw)
    return images


def _read_image(raw: Any, source: Source) -> tuple[int | str, str, Size]:
    image = raw if isinstance(raw, dict) else {}
    image_id, name = image.get("id"), image.get("file_name")
    if not _is_int(image_id) and not isinstance(image_id, str):
        raise Flaw("bad-image", f"has id {str(image_id)[:80]}; expected a whole number or a text")
    image_id = image_id if isinstance(image_id, str) else int(image_id)
    path = locate(name, source)
    if path is None:
        raise Flaw("unsafe-path", f"has file_name {str(name)[:200]!r}; expected a name inside the dataset folder")
    height, width = image.get("height"), image.get("width")
    if not height or not width:
        return image_id, path, None
    if not (_is_int(height) and _is_int(width) and min(height, width) > 0 and height * width <= MAX_PIXELS):
        told = f"has height {str(height)[:20]} and width {str(width)[:20]}"
        raise Flaw("bad-image", f"{told}; expected whole numbers of pixels, at most {MAX_PIXELS} in all")
    return image_id, path, (int(height), int(width))


def _read_annotation(
    number: int, raw: Any, images: Mapping[int | str, tuple[str, Size]], categories: Mapping[int, Any], index_of: Mapping[int, int]
) -> tuple[int | str, Annotation]:
    if not isinstance(raw, dict):
        raise Flaw("bad-annotation", f"is {str(raw)[:80]}; expected an object")
    image_id, category = raw.get("image_id"), raw.get("category_id")
    if not (_is_int(image_id) or isinstance(image_id, str)) or image_id not in images:
        raise Flaw("unknown-image", f"belongs to image {str(image_id)[:80]}, which the file does not list")
    if not _is_int(category) or category not in categories:
        raise Flaw("wrong-class", f"has category {str(category)[:80]}, but the file lists {describe_ids(categories)}")
    if category not in index_of:
        name = categories[category]["name"]
        others = any(c.get("supercategory") == name and i != category for i, c in categories.items())
        unused = "; there it is a group of other classes without annotations: annotate it there, or name another class" if others else ""
        raise Flaw("wrong-class", f"has category {category} ({name}), which the train split does not have{unused}")
    outline = _read_outline(raw.get("segmentation"), images[image_id][1])
    box, area = _read_box(raw.get("bbox"), outline, images[image_id][1]), raw.get("area")
    known_area = area if _is_number(area) and area >= 0 else None
    return image_id, Annotation(number, index_of[category], box, outline, bool(raw.get("iscrowd")), known_area)


def _read_box(raw: Any, outline: Outline, size_hw: Size) -> tuple[float, float, float, float]:
    if raw is None and isinstance(outline, tuple):
        return enclose(np.concatenate(outline))
    if raw is None and isinstance(outline, dict) and size_hw:
        return _enclose_mask(Masks(size_hw, [counts_of_rle(outline, size_hw)]))
    if not isinstance(raw, list) or len(raw) != 4 or not all(map(_is_number, raw)) or min(raw[2:]) < 0:
        raise Flaw("bad-box", f"has bbox {str(raw)[:80]}; expected [x, y, width, height] in pixels")
    return float(raw[0]), float(raw[1]), float(raw[0]) + raw[2], float(raw[1]) + raw[3]


def _enclose_mask(masks: Masks) -> tuple[float, float, float, float]:
    (top, left), part = masks.crop(0)
    if not part.any():
        raise Flaw("bad-outline", "has no bbox, and a segmentation without a pixel; expected one of the two")
    return float(left), float(top), float(left + part.shape[1]), float(top + part.shape[0])


def _read_outline(raw: Any, size_hw: Size) -> Outline:
    """Polygons of at least three points, or run lengths that fit the image; None when there is neither."""
    if not raw:
        return None
    if isinstance(raw, dict):
        try:
            if size_hw:
                counts_of_rle(raw, size_hw)
        except ConfigError as problem:
            raise Flaw("bad-outline", f"has a damaged segmentation: {problem}") from None
        return raw
    if not isinstance(raw, list) or not all(isinstance(p, list) and len(p) % 2 == 0 and all(map(_is_number, p)) for p in raw):
        raise Flaw("bad-outline", f"has segmentation {str(raw)[:80]}; expected lists of x, y, x, y, ... in pixels")
    polygons = tuple(np.array(p, np.float64).reshape(-1, 2) for p in raw if len(p) >= 6)
    check_length(polygons)
    return polygons or None


def _note_oddities(data: dict[str, Any], file: str, problems: Problems) -> None:
    """Things that we read well and other tools stumble over."""
    year = data["info"].get("year") if isinstance(data.get("info"), dict) else None
    if isinstance(year, str):
        problems.note("year-is-text", file, f"has info.year {year!r} as text")
    ids = [a.get("id") for a in data["annotations"] if isinstance(a, dict) and _is_int(a.get("id"))]
    if 0 in ids:
        problems.note("annotation-id-0", f"{file} annotation {ids.index(0)}", "has id 0")
    if len(set(ids)) < len(ids):
        problems.note("annotation-id-repeated", file, f"repeats {len(ids) - len(set(ids))} annotation ids")


def _is_int(value: Any) -> TypeGuard[int]:
    """Whole numbers; some programs write 224.0, which is equal to 224 wherever it is looked up."""
    return (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, float) and value.is_integer())


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MAX_PIXELS  # no NaN, no infinity
