"""What runs say: percentiles that have enough runs behind them, bootstrap intervals, and whether two series differ.

Series are float arrays of R rounds, [R] or [R, k] with k runs in each round. Runs of one round resemble each other (the
machine was the same), so whole rounds are drawn again, and two paired series are drawn by the same rounds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from rapidetr.core.errors import ConfigError

CERTAINTY = 0.95  # of every interval
RESAMPLES = 2000
LEAST_EFFECT = 0.01  # ratios closer to 1 than this are no difference, however certain
VERDICTS = ("faster", "slower", "no difference")
Interval = tuple[float, float]


def least_samples(percentile: float) -> int:
    """Runs that `percentile` (0 < p < 100) needs: with 95 % certainty the slowest lies beyond it (Wilks 1941).

    5 for p50, 29 for p90, 59 for p95, 299 for p99.
    """
    if not 0 < percentile < 100:
        raise ConfigError(f"percentile is {percentile:g}; expected a number between 0 and 100")
    return math.ceil(math.log(1 - CERTAINTY) / math.log(max(percentile, 100 - percentile) / 100))


def percentile(values: np.ndarray, percentile: float) -> float:
    """By linear interpolation between the two nearest runs; ConfigError from fewer runs than `least_samples`."""
    series = checked(values)
    if series.size < least_samples(percentile):
        raise ConfigError(
            f"p{percentile:g} of {series.size} runs says nothing; expected at least {least_samples(percentile)}, make more rounds"
        )
    return float(np.percentile(series, percentile))


def spread(values: np.ndarray) -> float:
    """Width of the middle half of all runs as a part of their median, 0 for equal runs."""
    low, middle, high = np.percentile(checked(values), (25, 50, 75))
    return float((high - low) / middle) if middle else 0.0


def percentile_interval(rounds: np.ndarray, percentile: float, *, seed: int = 0) -> Interval:
    """95 % bootstrap interval of a percentile, rounds drawn again as wholes."""
    series = checked(rounds)
    return middle_of(np.concatenate([of_rows(series, rows, percentile) for rows in draws(series, seed)]))


def ratio_interval(
    rounds: np.ndarray, baseline: np.ndarray, percentile: float, *, paired: bool = True, seed: int = 0
) -> tuple[float, Interval]:
    """(percentile of `rounds` / percentile of `baseline`, its 95 % bootstrap interval); below 1 is faster than the baseline.

    `paired`: round i of both ran side by side, so both are drawn by the same rounds; else each by its own.
    """
    ours, theirs = checked(rounds), checked(baseline)
    if paired and len(ours) != len(theirs):
        raise ConfigError(f"{len(ours)} rounds against {len(theirs)}; expected as many of both, or paired=False")
    if min(theirs.min(), ours.min()) <= 0:
        raise ConfigError("a run took no time; expected times above 0, check the clock")
    rows = zip(draws(ours, seed), draws(theirs, seed if paired else seed + 1), strict=True)
    drawn = [of_rows(ours, own, percentile) / of_rows(theirs, other, percentile) for own, other in rows]
    ratio = np.percentile(ours, percentile) / np.percentile(theirs, percentile)
    return float(ratio), middle_of(np.concatenate(drawn))


def verdict(interval: Interval, *, least_effect: float = LEAST_EFFECT) -> str:
    """One of VERDICTS for an interval of a ratio to the baseline: the whole interval must lie beyond `least_effect`."""
    low, high = interval
    return "faster" if high < 1 - least_effect else "slower" if low > 1 + least_effect else "no difference"


def checked(values: np.ndarray) -> np.ndarray:
    """float64 [R] or [R, k] with at least one finite run; ConfigError otherwise."""
    series = np.asarray(values, np.float64)
    if series.ndim not in (1, 2) or not series.size or not np.isfinite(series).all():
        raise ConfigError(f"runs have shape {series.shape}; expected [rounds] or [rounds, runs], at least one, all finite")
    return series


def draws(series: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """Row indices [n, R], RESAMPLES in all, in blocks of bounded memory whose sizes depend on nothing but RESAMPLES."""
    rng = np.random.default_rng(seed)
    for _ in range(RESAMPLES // 250):
        yield rng.integers(0, len(series), (250, len(series)))


def of_rows(series: np.ndarray, rows: np.ndarray, percentile: float) -> np.ndarray:
    return np.asarray(np.percentile(series[rows].reshape(len(rows), -1), percentile, axis=1))


def middle_of(drawn: np.ndarray) -> Interval:
    tail = 50 * (1 - CERTAINTY)
    low, high = np.percentile(drawn, (tail, 100 - tail))
    return float(low), float(high)
