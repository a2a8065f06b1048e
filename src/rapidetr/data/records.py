"""What a reader hands over: one frozen record for each picture, one LabelSpace for all, and a list of what was wrong."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rapidetr.core.errors import ConfigError, DatasetError
from rapidetr.core.labels import LabelSpace
from rapidetr.core.masks import Masks, counts_of_rle
from rapidetr.data.outlines import fill_outlines

Outline = tuple[np.ndarray, ...] | dict[str, Any] | None  # polygons float64 [P, 2] as x, y in pixels · COCO RLE · unknown
MAX_OUTLINE_PX = 1_000_000
ERROR_POLICIES = ("raise", "skip")


class Annotation(NamedTuple):
    """One object while it is being read; `number` is its line or its place in the annotation file."""

    number: int
    class_id: int
    box_xyxy_px: tuple[float, float, float, float]
    outline: Outline = None
    crowd: bool = False
    area: float | None = None


@dataclass(frozen=True, eq=False)
class ImageRecord:
    """One picture and its n objects, as the files say it: boxes are neither clipped nor dropped.

    boxes_xyxy_px float32 [n, 4] in pixels of the upright picture · class_ids int64 [n], 0..K-1 · crowd bool [n] · areas
    float64 [n] in pixels (of the box where the file gives none) · outlines: one for each object, or None for a picture
    with boxes only · numbers int64 [n]: where in `file` each object stands · size_hw: what the file declares, or None.
    """

    path: str
    image_id: int | str
    split: str
    size_hw: tuple[int, int] | None
    boxes_xyxy_px: np.ndarray
    class_ids: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    outlines: tuple[Outline, ...] | None
    numbers: np.ndarray
    file: str  # annotation file, relative to the root of the dataset
    unit: str = "annotation"  # what `numbers` counts: annotation (from 0), line or object (from 1)

    @classmethod
    def build(cls, annotations: Sequence[Annotation], **fields: Any) -> ImageRecord:
        """The record of `annotations`; the remaining fields by name."""
        boxes = np.array([a.box_xyxy_px for a in annotations], np.float64).reshape(-1, 4)
        sides = boxes[:, 2:] - boxes[:, :2]
        declared = np.array([np.nan if a.area is None else a.area for a in annotations], np.float64)
        outlines = tuple(a.outline for a in annotations)
        return cls(
            boxes_xyxy_px=boxes.astype(np.float32),
            class_ids=np.array([a.class_id for a in annotations], np.int64),
            crowd=np.array([a.crowd for a in annotations], bool),
            areas=np.where(np.isnan(declared), sides[:, 0] * sides[:, 1], declared),
            outlines=outlines if any(o is not None for o in outlines) else None,
            numbers=np.array([a.number for a in annotations], np.int64),
            **fields,
        )

    def __len__(self) -> int:
        return len(self.class_ids)

    def place(self, index: int) -> str:
        """Where object `index` stands, as in `labels/0041.txt line 3`."""
        return f"{self.file} {self.unit} {self.numbers[index]}"

    def masks(self, size_hw: tuple[int, int] | None = None) -> Masks:
        """Masks of all objects, pixel for pixel as pycocotools draws them; an object without outline is its filled box.

        `size_hw` is needed where the file declares none. DatasetError names the object whose run lengths do not fit.
        """
        size = size_hw or self.size_hw
        if size is None:
            raise DatasetError(f"{self.path}: {self.file} declares no size; pass size_hw to draw its masks")
        outlines = self.outlines or (None,) * len(self)
        return Masks(size, [self._counts(i, outline, size) for i, outline in enumerate(outlines)])

    def _counts(self, index: int, outline: Outline, size_hw: tuple[int, int]) -> np.ndarray:
        if isinstance(outline, dict):
            try:
                return counts_of_rle(outline, size_hw)
            except ConfigError as problem:
                raise DatasetError(f"{self.place(index)}: {problem}; draw it again") from None
        if outline is None:
            height, width = size_hw
            far = (width + 1, height + 1) * 2  # drawing takes time and memory by the length of an outline
            x0, y0, x1, y1 = np.clip(self.boxes_xyxy_px[index], -1, far).tolist()
            outline = (np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]),)
        return fill_outlines(outline, size_hw)


def enclose(points: np.ndarray) -> tuple[float, float, float, float]:
    """The box around points [P, 2]."""
    (x0, y0), (x1, y1) = points.min(0), points.max(0)
    return float(x0), float(y0), float(x1), float(y1)


def describe_ids(ids: Iterable[int]) -> str:
    """`10 classes (0-9)`, or the numbers themselves where they have gaps."""
    ids = sorted(ids)
    whole = bool(ids) and ids[-1] - ids[0] == len(ids) - 1 > 0
    return f"{len(ids)} classes ({f'{ids[0]}-{ids[-1]}' if whole else ', '.join(map(str, ids))})"


def check_length(polygons: Iterable[np.ndarray]) -> None:
    """Flaw when an outline is longer than any picture needs; drawing takes time and memory by its length."""
    for polygon in polygons:
        length = float(np.abs(np.diff(polygon, axis=0)).sum())
        if length > MAX_OUTLINE_PX:
            raise Flaw("bad-outline", f"has an outline of {length:.0f} pixels; expected at most {MAX_OUTLINE_PX}")


@dataclass(frozen=True)
class Problem:
    """One thing that was wrong in the files. An `error` cost something when it was skipped; a `note` did not."""

    kind: str
    severity: str
    where: str
    message: str


class Flaw(Exception):
    """Says inside a reader what is wrong with one entry; `Problems.add` turns it into an error with its place."""

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(kind, what)
        self.kind, self.what = kind, what


class Problems:
    """Collects problems of one reading; with on_error="raise" the first error ends it as a DatasetError."""

    def __init__(self, format: str, on_error: str = "raise") -> None:
        if on_error not in ERROR_POLICIES:
            raise ConfigError(f"on_error is {on_error!r}; expected one of {', '.join(ERROR_POLICIES)}")
        self.format, self.on_error = format, on_error
        self.found: list[Problem] = []

    def add(self, where: str, flaw: Flaw) -> None:
        message = f"{self.format}: {where} {flaw.what}"
        if self.on_error == "raise":
            raise DatasetError(message)
        self.found.append(Problem(flaw.kind, "error", where, message))

    def note(self, kind: str, where: str, what: str) -> None:
        self.found.append(Problem(kind, "note", where, f"{self.format}: {where} {what}"))


@dataclass(frozen=True, eq=False)
class Dataset:
    """One split. All splits of a dataset share the LabelSpace of its train split. `problems` says what was skipped."""

    root: str
    split: str
    format: str
    images: tuple[ImageRecord, ...]
    labels: LabelSpace
    problems: tuple[Problem, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def class_counts(self) -> np.ndarray:
        """int64 [K]: objects of each class, crowds left out."""
        ids = [r.class_ids[~r.crowd] for r in self.images]
        return np.bincount(np.concatenate(ids) if ids else np.zeros(0, np.int64), minlength=len(self.labels))

    @property
    def has_outlines(self) -> bool:
        return any(r.outlines is not None for r in self.images)
