"""Stage times with a clock that tells what it is told."""

from __future__ import annotations

import pytest

from rapidetr.core.clock import StageClock


def test_stages_add_up() -> None:
    clock = StageClock(iter([0.0, 1.0, 5.0, 7.5, 10.0, 10.25]).__next__)
    with clock.stage("run"):
        pass
    with clock.stage("select"):
        pass
    with clock.stage("run"):
        pass
    assert clock.seconds == {"run": 1.25, "select": 2.5}
    assert clock.milliseconds() == {"run": 1250.0, "select": 2500.0}


def test_an_error_inside_a_stage_passes_and_is_timed() -> None:
    clock = StageClock(iter([1.0, 4.0]).__next__)
    with pytest.raises(KeyError), clock.stage("decode"):
        raise KeyError
    assert clock.seconds == {"decode": 3.0}


def test_stages_nest_and_clocks_start_empty() -> None:
    clock = StageClock(iter([0.0, 1.0, 3.0, 10.0]).__next__)
    assert clock.milliseconds() == {}
    with clock.stage("select"), clock.stage("masks"):
        pass
    assert clock.seconds == {"masks": 2.0, "select": 10.0}
