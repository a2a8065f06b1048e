"""Tiny datasets that the tests of the data room write, in every layout that the readers know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NAMES = ("ant", "bee", "cat")
Scene = tuple[str, tuple[int, int], list[tuple[int, tuple[float, float, float, float]]]]  # stem, size_hw, (class, box)


def paint(seed: int, size_hw: tuple[int, int] = (48, 64)) -> np.ndarray:
    """A coarse random pattern: pictures of different seeds look different at any size."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size_hw[::-1], Image.Resampling.NEAREST))


def save(path: Path, seed: int, size_hw: tuple[int, int] = (48, 64)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(paint(seed, size_hw)).save(path)
    return path


def scenes(seed: int, count: int = 3, tag: str = "a") -> list[Scene]:
    """Scenes with every class, whole-pixel boxes, pictures of different sizes."""
    rng = np.random.default_rng(seed)
    made: list[Scene] = []
    for k in range(count):
        h, w = (int(v) for v in rng.integers(32, 80, 2))
        objects = []
        for class_id in (*range(len(NAMES)), *rng.integers(0, len(NAMES), int(rng.integers(0, 4))).tolist()):
            x0, y0 = int(rng.integers(0, w - 8)), int(rng.integers(0, h - 8))
            x1, y1 = int(rng.integers(x0 + 6, w + 1)), int(rng.integers(y0 + 6, h + 1))
            objects.append((class_id, (float(x0), float(y0), float(x1), float(y1))))
        made.append((f"{tag}{k}", (h, w), objects))
    return made


def describe(made: list[Scene]) -> dict[str, Any]:
    """COCO JSON of scenes; ids from 1, category ids 0, 1, 2."""
    images, annotations = [], []
    for i, (stem, (h, w), objects) in enumerate(made, 1):
        images.append({"id": i, "file_name": f"{stem}.png", "height": h, "width": w})
        for c, (x0, y0, x1, y1) in objects:
            size = (x1 - x0, y1 - y0)
            fields = {"image_id": i, "category_id": c, "iscrowd": 0, "segmentation": []}
            annotations.append({"id": len(annotations) + 1, "bbox": [x0, y0, *size], "area": size[0] * size[1], **fields})
    categories = [{"id": i, "name": n, "supercategory": "none"} for i, n in enumerate(NAMES)]
    return {"images": images, "annotations": annotations, "categories": categories}


def save_scenes(folder: Path, made: list[Scene], seed: int = 0) -> None:
    for k, (stem, size_hw, _) in enumerate(made):
        save(folder / f"{stem}.png", 1000 * seed + k, size_hw)


def write_json(file: Path, data: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(data), "utf-8")
    return file


def write_roboflow(root: Path, splits: dict[str, list[Scene]]) -> Path:
    for k, (split, made) in enumerate(splits.items()):
        save_scenes(root / split, made, k)
        write_json(root / split / "_annotations.coco.json", describe(made))
    return root


def yolo_lines(made: Scene) -> str:
    _, (h, w), objects = made
    return "".join(
        f"{c} {(x0 + x1) / 2 / w!r} {(y0 + y1) / 2 / h!r} {(x1 - x0) / w!r} {(y1 - y0) / h!r}\n" for c, (x0, y0, x1, y1) in objects
    )


def write_yolo(root: Path, splits: dict[str, list[Scene]], order: str = "{split}/{kind}") -> Path:
    for k, (split, made) in enumerate(splits.items()):
        labels = root / order.format(split=split, kind="labels")
        labels.mkdir(parents=True)
        save_scenes(root / order.format(split=split, kind="images"), made, k)
        for scene in made:
            (labels / f"{scene[0]}.txt").write_text(yolo_lines(scene))
    lines = [f"{'val' if s == 'valid' else s}: {order.format(split=s, kind='images')}" for s in splits]
    (root / "data.yaml").write_text("\n".join([*lines, f"nc: {len(NAMES)}", f"names: [{', '.join(NAMES)}]"]))
    return root


def voc_xml(scene: Scene, database: str = "Unknown") -> str:
    stem, (h, w), objects = scene
    keys = ("xmin", "ymin", "xmax", "ymax")
    parts = [
        f"<object><name>{NAMES[c]}</name><difficult>0</difficult><bndbox>"
        + "".join(f"<{k}>{v:g}</{k}>" for k, v in zip(keys, box, strict=True))
        + "</bndbox></object>"
        for c, box in objects
    ]
    size = f"<size><width>{w}</width><height>{h}</height><depth>3</depth></size>"
    source = f"<source><database>{database}</database></source>"
    return f"<annotation><filename>{stem}.png</filename>{source}{size}{''.join(parts)}</annotation>"


def write_voc(root: Path, splits: dict[str, list[Scene]]) -> Path:
    (root / "Annotations").mkdir(parents=True)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for k, (split, made) in enumerate(splits.items()):
        save_scenes(root / "JPEGImages", made, k)
        for scene in made:
            (root / "Annotations" / f"{scene[0]}.xml").write_text(voc_xml(scene))
        names = "".join(f"{scene[0]}\n" for scene in made)
        (root / "ImageSets" / "Main" / f"{'val' if split == 'valid' else split}.txt").write_text(names)
    return root
