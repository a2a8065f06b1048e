"""The record of how to feed a model: official values, round trip, refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rapidetr.core.errors import ConfigError
from rapidetr.core.preprocessing import Preprocessing

GOOD = Preprocessing.official().to_dict()


def test_official_files_use_two_filters() -> None:
    assert GOOD == {
        "predict_filter": "bilinear",
        "evaluate_filter": "bilinear-antialias",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    assert Preprocessing().predict_filter == Preprocessing().evaluate_filter == "bilinear-antialias"


def test_records_survive_json() -> None:
    gray = Preprocessing("bilinear", "bilinear", (0.5,), (0.25,))
    for record in (Preprocessing.official(), Preprocessing(), gray):
        assert Preprocessing.from_dict(json.loads(json.dumps(record.to_dict()))) == record


@pytest.mark.parametrize(
    "change",
    [{"predict_filter": "nearest"}, {"evaluate_filter": []}, {"mean": None}, {"mean": "abc"}, {"mean": [0.5]}, {"mean": [], "std": []},
         {"std": [1, 1, 0]}, {"std": [1, 1, float("nan")]}, {"std": [1, 1, float("inf")]},
     {"mean": [0, 0, float("nan")]}, {"std": [1, 1, "x"]}],
)  # fmt: skip
def test_damaged_records_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^preprocessing: expected predict_filter, evaluate_filter, mean and std \("):
        Preprocessing.from_dict({**GOOD, **change})


@pytest.mark.parametrize("record", [None, [], {}, {k: v for k, v in GOOD.items() if k != "std"}])
def test_incomplete_records_are_refused(record: Any) -> None:
    with pytest.raises(ConfigError, match=r"^preprocessing: expected predict_filter, evaluate_filter, mean and std \("):
        Preprocessing.from_dict(record)
