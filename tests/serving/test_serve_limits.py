"""Limits that contradict each other, budgets, keys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rapidetr.choice.records import Promise, ServiceLevel
from rapidetr.core.errors import ConfigError
from rapidetr.serving.limits import ServeLimits, is_loopback, read_budget, read_keys


@pytest.mark.parametrize("wrong", [{"max_pixels": 0}, {"deadline_ms": -1}, {"latency_budget_ms": 0.0}, {"body_timeout_s": float("inf")}])
def test_limits_are_above_zero(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(ConfigError, match=f"{name} is .*; expected a number above 0"):
        ServeLimits(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"max_images": 65}, {"max_batch": 65}])
def test_a_queue_takes_a_request_and_a_batch(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="expected a queue that takes one request and one batch"):
        ServeLimits(**wrong)  # type: ignore[arg-type]


def test_the_budget_of_a_real_service_level(tmp_path: Path) -> None:
    path = tmp_path / "service_level.json"
    path.write_text(json.dumps(Promise(ServiceLevel(p95_ms=45.5), None, None, True, {}).to_dict()))
    assert read_budget(path) == 45.5


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"limits": {"p95_ms": true}}', '{"limits": {"p95_ms": -3}}', '{"limits": {"p95_ms": NaN}}']
)
def test_a_budget_that_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"x\.json: expected limits\.p95_ms in a service_level\.json"):
        read_budget(path)


def test_keys() -> None:
    assert read_keys("0123456789abcdef\n\n  fedcba9876543210 \n", "f") == (b"0123456789abcdef", b"fedcba9876543210")
    for text in ("", "short", "0123456789abcde\u00e9"):
        with pytest.raises(ConfigError, match="f: expected API keys of at least 16 printable ASCII characters"):
            read_keys(text, "f")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_this_machine_alone(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])
def test_other_machines_too(host: str) -> None:
    assert not is_loopback(host)
