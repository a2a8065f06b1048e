"""Percentiles refused without enough runs, intervals that hold what they promise, verdicts."""

from __future__ import annotations

import numpy as np
import pytest

from rapidetr.core.errors import ConfigError
from rapidetr.core.statistics import least_samples, percentile, percentile_interval, ratio_interval, spread, verdict


def test_percentiles_interpolate_between_runs() -> None:
    values = np.random.default_rng(0).permutation(np.arange(1.0, 102.0))
    assert percentile(values, 50) == 51
    assert percentile(values, 95) == 96
    assert percentile(values[values <= 100], 50) == 50.5


def test_a_percentile_needs_runs_beyond_it() -> None:
    assert [least_samples(p) for p in (50, 90, 95, 99, 5)] == [5, 29, 59, 299, 59]
    for p in (50, 90, 95, 99):  # the slowest of n runs lies beyond p with probability 1 - (p / 100)^n
        assert 1 - (p / 100) ** least_samples(p) >= 0.95 > 1 - (p / 100) ** (least_samples(p) - 1)
    with pytest.raises(ConfigError, match=r"^p99 of 50 runs says nothing; expected at least 299, make more rounds$"):
        percentile(np.ones(50), 99)
    with pytest.raises(ConfigError, match=r"^percentile is 100; expected a number between 0 and 100$"):
        least_samples(100)


@pytest.mark.parametrize("wrong", [[], [1.0, np.nan], [[[1.0]]]])
def test_runs_that_are_none(wrong: list) -> None:
    with pytest.raises(ConfigError, match="at least one, all finite"):
        spread(np.array(wrong))


def test_spread_is_the_middle_half() -> None:
    assert spread(np.full(9, 7.0)) == 0
    assert spread(np.array([8.0, 9, 10, 11, 12])) == pytest.approx(0.2)


def test_intervals_are_reproducible_and_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(100):
        runs = rng.lognormal(0.0, 0.2, 60)
        low, high = percentile_interval(runs, 50)
        assert low <= np.median(runs) <= high
        held += low <= 1.0 <= high  # the true median
    assert held >= 88  # 95 expected; fewer than 88 have a probability of 0.1 %
    assert percentile_interval(runs, 50, seed=3) == percentile_interval(runs, 50, seed=3)
    assert percentile_interval(runs, 50, seed=3) != percentile_interval(runs, 50, seed=4)


def test_equal_series_are_rarely_called_different() -> None:
    rng = np.random.default_rng(2)
    for p in (50, 95):
        pairs = [(rng.lognormal(0, 0.1, 60), rng.lognormal(0, 0.1, 60)) for _ in range(40)]
        wrong = sum(verdict(ratio_interval(a, b, p)[1]) != "no difference" for a, b in pairs)
        assert wrong <= 6  # 2 of 40 expected at 95 %; more than 6 have a probability of 0.3 %


@pytest.mark.parametrize(("factor", "expected"), [(0.9, "faster"), (1.1, "slower"), (1.0, "no difference"), (1.005, "no difference")])
def test_verdicts_on_constructed_series(factor: float, expected: str) -> None:
    rng = np.random.default_rng(3)
    weather = rng.lognormal(0, 0.2, (40, 1))  # a machine that is now fast, now slow, for both alike
    base, ours = (weather * rng.normal(20, 0.1, (40, 3)) for _ in range(2))
    for p in (50, 95):
        ratio, (low, high) = ratio_interval(factor * ours, base, p)
        assert low <= ratio <= high
        assert verdict((low, high)) == expected


def test_pairing_sees_what_separate_rounds_cannot() -> None:
    rng = np.random.default_rng(4)
    weather = rng.lognormal(0, 0.4, (30, 1))
    base, ours = weather * rng.normal(20, 0.05, (30, 3)), 0.96 * weather * rng.normal(20, 0.05, (30, 3))
    assert verdict(ratio_interval(ours, base, 50)[1]) == "faster"
    assert verdict(ratio_interval(ours, base, 50, paired=False)[1]) == "no difference"
    with pytest.raises(ConfigError, match=r"^30 rounds against 29; expected as many of both, or paired=False$"):
        ratio_interval(ours, base[:29], 50)
    ratio_interval(ours, base[:29], 50, paired=False)
    with pytest.raises(ConfigError, match="a run took no time"):
        ratio_interval(ours, 0 * base, 50)


def test_alike_calls_of_a_round_do_not_count_as_many() -> None:
    """Rounds are drawn as wholes: three equal calls each say as much as one."""
    once = np.random.default_rng(5).lognormal(0, 0.2, (40, 1))
    one, three = percentile_interval(once, 50), percentile_interval(once.repeat(3, axis=1), 50)
    assert three[1] - three[0] == pytest.approx(one[1] - one[0], rel=0.1)  # medians of odd and even counts interpolate differently
    flat = percentile_interval(once.repeat(3, axis=1).reshape(-1), 50)
    assert flat[1] - flat[0] < 0.8 * (one[1] - one[0])
