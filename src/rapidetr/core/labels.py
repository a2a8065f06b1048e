"""Class identity: index <-> name <-> dataset id <-> row of the class head, mapped once and saved with every checkpoint.

Inside RapiDETR a class is always an index 0..K-1. Data sets number their categories as they like (COCO: 1..90 with gaps),
and heads have rows that belong to no class (COCO: row 0 and the gaps; fine-tuned official heads: the last row).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import index
from typing import Any

import numpy as np

from rapidetr.core.errors import ConfigError


@dataclass(frozen=True)
class LabelSpace:
    """K classes. `rows[i]` is the output of the class head that scores class i; `head_rows` counts all outputs."""

    names: tuple[str, ...]
    dataset_ids: tuple[int, ...]
    rows: tuple[int, ...]
    head_rows: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(str(n) for n in self.names))
        object.__setattr__(self, "dataset_ids", tuple(index(i) for i in self.dataset_ids))
        object.__setattr__(self, "rows", tuple(index(r) for r in self.rows))
        if not len(self.names) == len(self.dataset_ids) == len(self.rows):
            raise ConfigError(
                f"labels: {len(self.names)} names, {len(self.dataset_ids)} ids and {len(self.rows)} rows; expected equally many"
            )
        if len(set(self.dataset_ids)) != len(self.dataset_ids) or len(set(self.rows)) != len(self.rows):
            raise ConfigError("labels: a dataset id or a row of the head is used twice")
        if not 0 <= self.head_rows <= 1_000_000 or any(abs(i) >= 2**63 for i in self.dataset_ids):
            raise ConfigError(
                f"labels: the head has {self.head_rows} rows, ids are {self.dataset_ids}; expected 0..1000000 rows and 64-bit ids"
            )
        if any(not 0 <= r < self.head_rows for r in self.rows):
            raise ConfigError(f"labels: rows must lie in 0..{self.head_rows - 1}, got {self.rows}")

    @classmethod
    def contiguous(cls, names: Sequence[str], *, dataset_ids: Iterable[int] | None = None, head_rows: int | None = None) -> LabelSpace:
        """Class i is scored by row i, as in fine-tuned files; the head has one row more than classes unless told."""
        k = len(names)
        return cls(
            tuple(names),
            tuple(range(k) if dataset_ids is None else dataset_ids),
            tuple(range(k)),
            k + 1 if head_rows is None else head_rows,
        )

    @classmethod
    def coco(cls, head_rows: int = 91) -> LabelSpace:
        """The 80 COCO classes; the row of the head is the category id."""
        return cls(tuple(COCO_NAMES.values()), tuple(COCO_NAMES), tuple(COCO_NAMES), head_rows)

    @classmethod
    def unnamed(cls, head_rows: int) -> LabelSpace:
        """For a head that nobody named: COCO's classes for 91 rows, else numbered ones, the last row being none."""
        return cls.coco() if head_rows == 91 else cls.contiguous([f"class {i}" for i in range(head_rows - 1)])

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def class_of_row(self) -> np.ndarray:
        """int64 [head_rows]: class index of each row of the head, -1 for rows without a class."""
        table = np.full(self.head_rows, -1, np.int64)
        table[list(self.rows)] = np.arange(len(self.rows))
        return table

    def indices(self, classes: Iterable[str | int]) -> list[int]:
        """Class indices of names or indices; ConfigError names what is unknown and what there is."""
        found = []
        for c in classes:
            if isinstance(c, str) and c in self.names:
                found += [i for i, name in enumerate(self.names) if name == c]  # data sets may use a name twice
            elif isinstance(c, int | np.integer) and not isinstance(c, bool) and 0 <= c < len(self):
                found.append(int(c))
            else:
                raise ConfigError(f"unknown class {c!r}; this model knows: {', '.join(self.names)}")
        return found

    def to_dict(self) -> dict[str, Any]:
        return {"names": list(self.names), "dataset_ids": list(self.dataset_ids), "rows": list(self.rows), "head_rows": self.head_rows}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> LabelSpace:
        try:
            lists = [record[key] for key in ("names", "dataset_ids", "rows")]
            if not all(isinstance(values, list | tuple) for values in lists):
                raise TypeError("names, dataset_ids and rows are lists")
            return cls(tuple(lists[0]), tuple(lists[1]), tuple(lists[2]), index(record["head_rows"]))
        except (KeyError, TypeError, ValueError) as problem:
            raise ConfigError(f"labels: expected names, dataset_ids, rows and head_rows, got {str(record)[:200]} ({problem})") from None


COCO_NAMES: dict[int, str] = {
    1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 6: "bus", 7: "train", 8: "truck", 9: "boat",
    10: "traffic light", 11: "fire hydrant", 13: "stop sign", 14: "parking meter", 15: "bench", 16: "bird", 17: "cat",
    18: "dog", 19: "horse", 20: "sheep", 21: "cow", 22: "elephant", 23: "bear", 24: "zebra", 25: "giraffe", 27: "backpack",
    28: "umbrella", 31: "handbag", 32: "tie", 33: "suitcase", 34: "frisbee", 35: "skis", 36: "snowboard", 37: "sports ball",
    38: "kite", 39: "baseball bat", 40: "baseball glove", 41: "skateboard", 42: "surfboard", 43: "tennis racket",
    44: "bottle", 46: "wine glass", 47: "cup", 48: "fork", 49: "knife", 50: "spoon", 51: "bowl", 52: "banana", 53: "apple",
    54: "sandwich", 55: "orange", 56: "broccoli", 57: "carrot", 58: "hot dog", 59: "pizza", 60: "donut", 61: "cake",
    62: "chair", 63: "couch", 64: "potted plant", 65: "bed", 67: "dining table", 70: "toilet", 72: "tv", 73: "laptop",
    74: "mouse", 75: "remote", 76: "keyboard", 77: "cell phone", 78: "microwave", 79: "oven", 80: "toaster", 81: "sink",
    82: "refrigerator", 84: "book", 85: "clock", 86: "vase", 87: "scissors", 88: "teddy bear", 89: "hair drier",
    90: "toothbrush",
}  # fmt: skip
