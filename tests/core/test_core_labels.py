"""Class identity: COCO's gaps, fine-tuned heads, unknown names, round trips."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from rapidetr.core.errors import ConfigError
from rapidetr.core.labels import COCO_NAMES, LabelSpace


def test_coco_has_eighty_names_and_gaps() -> None:
    coco = LabelSpace.coco()
    assert (len(coco), coco.head_rows) == (80, 91)
    assert (coco.names[0], coco.dataset_ids[0], coco.rows[0]) == ("person", 1, 1)
    assert (coco.names[79], coco.dataset_ids[79], coco.rows[79]) == ("toothbrush", 90, 90)
    gaps = np.flatnonzero(coco.class_of_row < 0).tolist()
    assert gaps == [0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83]  # row 0 and the ten ids that COCO never annotated
    assert all(coco.names[coco.class_of_row[row]] == COCO_NAMES[row] for row in COCO_NAMES)
    assert (LabelSpace.coco(366).class_of_row[91:] == -1).all()


def test_a_fine_tuned_head_has_a_dead_last_row() -> None:
    labels = LabelSpace.contiguous(["a", "b", "c"])
    assert (labels.rows, labels.dataset_ids, labels.head_rows) == ((0, 1, 2), (0, 1, 2), 4)
    assert labels.class_of_row.tolist() == [0, 1, 2, -1]
    assert labels.class_of_row.dtype == np.int64
    told = LabelSpace.contiguous(["a", "b"], dataset_ids=[7, 3], head_rows=2)
    assert (told.dataset_ids, told.class_of_row.tolist()) == ((7, 3), [0, 1])
    assert LabelSpace.contiguous([]).class_of_row.tolist() == [-1]


def test_indices_of_names_and_numbers() -> None:
    labels = LabelSpace.contiguous(["cat", "dog", "cat"])
    assert labels.indices(["dog", 0, np.int64(2)]) == [1, 0, 2]
    assert labels.indices(["cat"]) == [0, 2]  # a data set may use a name twice
    assert labels.indices([]) == []


@pytest.mark.parametrize("bad", ["Cat", 2, -1, True, 1.0, None])
def test_unknown_classes_are_named(bad: object) -> None:
    with pytest.raises(ConfigError) as caught:
        LabelSpace.contiguous(["cat", "dog"]).indices([bad])  # type: ignore[list-item]
    assert str(caught.value) == f"unknown class {bad!r}; this model knows: cat, dog"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((("a", "b"), (0,), (0, 1), 2), "labels: 2 names, 1 ids and 2 rows; expected equally many"),
        ((("a", "b"), (5, 5), (0, 1), 2), "labels: a dataset id or a row of the head is used twice"),
        ((("a", "b"), (0, 1), (1, 1), 2), "labels: a dataset id or a row of the head is used twice"),
        ((("a", "b"), (0, 1), (0, 2), 2), "labels: rows must lie in 0..1, got (0, 2)"),
        ((("a",), (0,), (-1,), 2), "labels: rows must lie in 0..1, got (-1,)"),
        (((), (), (), -1), "labels: the head has -1 rows, ids are (); expected 0..1000000 rows and 64-bit ids"),
        (((), (), (), 10**12), "labels: the head has 1000000000000 rows, ids are (); expected 0..1000000 rows and 64-bit ids"),
    ],
)
def test_contradictions_are_refused(arguments: tuple[tuple[str, ...], tuple[int, ...], tuple[int, ...], int], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        LabelSpace(*arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize("labels", [LabelSpace.coco(), LabelSpace.contiguous(["é", ""], dataset_ids=[9, -4]), LabelSpace.contiguous([])])
def test_round_trips(labels: LabelSpace) -> None:
    again = LabelSpace.from_dict(json.loads(json.dumps(labels.to_dict())))
    assert again == labels
    assert hash(again) == hash(labels)
    assert pickle.loads(pickle.dumps(labels)) == labels


GOOD = {"names": ["a"], "dataset_ids": [1], "rows": [0], "head_rows": 1}


@pytest.mark.parametrize(
    "change",
    [{"names": "a"}, {"names": None}, {"dataset_ids": ["x"]}, {"dataset_ids": [1.7]}, {"dataset_ids": [float("inf")]},
     {"dataset_ids": [2**63]},     {"rows": [None]}, {"rows": "0"}, {"head_rows": None}, {"head_rows": float("inf")}, {"head_rows": 0}],
)  # fmt: skip
def test_mistyped_records_are_refused(change: dict[str, object]) -> None:
    assert LabelSpace.from_dict(GOOD).names == ("a",)
    with pytest.raises(ConfigError, match=r"^labels: expected names, dataset_ids, rows and head_rows, got "):
        LabelSpace.from_dict({**GOOD, **change})


@pytest.mark.parametrize("record", [None, [], {}, {k: v for k, v in GOOD.items() if k != "rows"}])
def test_incomplete_records_are_refused(record: object) -> None:
    with pytest.raises(ConfigError, match=r"^labels: expected names, dataset_ids, rows and head_rows, got "):
        LabelSpace.from_dict(record)  # type: ignore[arg-type]
