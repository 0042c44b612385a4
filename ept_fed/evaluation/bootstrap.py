"""Intervals and verdicts by a group-level bootstrap, which draws whole patients, never single images of a patient.

The intervals are percentile intervals (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13). A
difference between two settings uses the same draws for both (paired), so effects that are common to both cancel, such
as a patient who is difficult for both.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ept_fed.evaluation.metrics import Array
from ept_fed.evaluation.weighted_metrics import Metric

__all__ = [
    "DRAWS",
    "MIN_GROUPS",
    "Difference",
    "Interval",
    "Verdict",
    "assess_difference",
    "measure",
    "resample",
    "summarise",
    "summarise_share",
]

DRAWS = 1000
MIN_GROUPS = 10
"""Minimum number of groups for an interval and a verdict: with fewer, resampling does not represent new patients."""

_MAX_TIMES_MORE = 30
_MIN_DEFINED = 0.8
_BLOCK_CELLS = 4_000_000

Verdict = Literal["helped", "no clear difference", "harmed"]


@dataclass(frozen=True)
class Interval:
    """A value on the test images with its 95 % interval; the bounds are NaN if no interval can be given."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """The difference between a setting and the baseline on the same patients.

    Attributes:
        value: difference of the metric; positive is better unless the metric is a loss.
        low: lower bound of the 95 % interval.
        high: upper bound.
        verdict: "helped" or "harmed" if the interval excludes zero; "no clear difference" otherwise.
        groups: number of groups (patients) in the comparison.
        groups_needed: estimated number of additional groups for a clear verdict, if the difference stays the same and
            the interval narrows with 1/sqrt(groups). None if there is a clear verdict, if the difference is zero, or if
            there is no interval. Also None beyond thirty times the present groups, where the extrapolation is
            meaningless.
    """

    value: float
    low: float
    high: float
    verdict: Verdict
    groups: int
    groups_needed: int | None


def measure(metric: Metric, images: int) -> Array:
    """Return the metric (…) on the images, each counted once."""
    return np.asarray(metric(np.ones((1, images)))[0])


def resample(metric: Metric, groups: Sequence[str], rng: np.random.Generator, draws: int = DRAWS) -> Array:
    """Return the metric (draws, …) on resamples of whole groups.

    Args:
        metric: weights (b, n) -> values (b, …).
        groups: (n,) group of each image.
        rng: the only source of randomness; the same state gives the same draws.
        draws: number of resamples.
    """
    return np.concatenate([metric(weights) for weights in _draw(groups, rng, draws)])


def summarise(value: float, draws: Array, groups: int) -> Interval:
    """Return the 95 % percentile interval of a metric.

    Args:
        value: metric on the original images.
        draws: (draws,) metric on the resamples; NaN where undefined.
        groups: number of groups; below `MIN_GROUPS` the bounds are NaN.
    """
    low, high = _bounds(draws, groups) if not math.isnan(value) else (math.nan, math.nan)
    return Interval(float(value), low, high)


def summarise_share(value: float, draws: Array, groups: int) -> Interval:
    """Return the interval of a share in [0, 1], such as a sensitivity; arguments as for `summarise`.

    If the share is 0 or 1, every resample has the same value, and the percentile interval has no width. The exact
    binomial bound over groups replaces it (Clopper and Pearson 1934), with a lower bound of 0.025^(1/groups) for 1.
    """
    interval = summarise(value, draws, groups)
    if math.isnan(interval.low) or interval.low < interval.high or 0 < interval.value < 1:
        return interval
    bound = 0.025 ** (1 / groups)
    return Interval(interval.value, bound, 1.0) if interval.value == 1 else Interval(interval.value, 0.0, 1 - bound)


def assess_difference(value: float, draws: Array, groups: int, *, higher_is_better: bool = True) -> Difference:
    """Return a difference with its interval and verdict.

    Args:
        value: difference on the original images.
        draws: (draws,) the same difference on paired resamples.
        groups: number of groups.
        higher_is_better: False for a loss.
    """
    interval = summarise(value, draws, groups)
    above, below = interval.low > 0, interval.high < 0
    verdict: Verdict = "no clear difference"
    if above or below:
        verdict = "helped" if above == higher_is_better else "harmed"
    needed = _groups_needed(interval, groups) if verdict == "no clear difference" else None
    return Difference(interval.value, interval.low, interval.high, verdict, groups, needed)


def _groups_needed(interval: Interval, groups: int) -> int | None:
    reach = interval.value - interval.low if interval.value > 0 else interval.high - interval.value
    if math.isnan(reach) or reach > abs(interval.value) * math.sqrt(_MAX_TIMES_MORE):
        return None
    return max(1, math.ceil(groups * (reach / interval.value) ** 2) - groups) if interval.value else None


def _bounds(draws: Array, groups: int) -> tuple[float, float]:
    defined = draws[~np.isnan(draws)]
    if groups < MIN_GROUPS or not len(defined) or len(defined) < _MIN_DEFINED * len(draws):
        return math.nan, math.nan
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)


def _draw(groups: Sequence[str], rng: np.random.Generator, draws: int) -> Iterator[Array]:
    """Yield weights (b, n) in blocks that fit into memory, with `draws` rows in total."""
    names, codes = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    size = max(1, _BLOCK_CELLS // max(len(codes), 1))
    for start in range(0, draws, size):
        rows = min(size, draws - start)
        picked = rng.integers(len(names), size=(rows, len(names)))
        picked += np.arange(rows)[:, None] * len(names)
        counts = np.bincount(picked.ravel(), minlength=rows * len(names)).reshape(rows, len(names))
        yield counts[:, codes].astype(np.float64)
