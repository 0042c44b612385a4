"""Aggregation rules as pure functions over arrays: no Flower, no files, no sockets.

S sites return payloads y (S, n). They start from the global payload x (n,) and have the weights w (S,). Sums are in
float64 and in the order of the rows, so equal inputs in equal order give the same bits. Results are float32.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt

from ept_fed.protocol.layout import PayloadLayout, Vector

__all__ = [
    "AggregationError",
    "control_mean",
    "feddyn",
    "feddyn_control",
    "fednova",
    "geometric_median",
    "log_mean_exp",
    "scaffold",
    "site_weights",
    "weighted_mean",
]

Matrix = npt.NDArray[np.floating]
Weights = npt.NDArray[np.float64]


class AggregationError(ValueError):
    """The rule is undefined for the given inputs; the text states why."""


def site_weights(
    examples: npt.NDArray[np.int64], rule: Literal["examples", "uniform", "capped"], cap: int | None = None
) -> Weights:
    """Return normalised weights (S,) from sample counts (S,).

    examples: proportional to the counts (McMahan et al. 2017). uniform: 1/S, which differential privacy and robust
    rules assume. capped: proportional to min(count, cap), so that no site dominates the model by its size.
    """
    if not len(examples) or (np.asarray(examples) < 1).any():
        raise AggregationError(f"sample counts {list(examples)} must all be at least 1")
    if rule == "uniform":
        counts = np.ones(len(examples))
    elif rule == "capped":
        if cap is None or cap < 1:
            raise AggregationError(f"cap {cap} must be at least 1")
        counts = np.minimum(examples, cap).astype(np.float64)
    else:
        counts = np.asarray(examples, dtype=np.float64)
    return counts / counts.sum()


def weighted_mean(payloads: Matrix, weights: Weights) -> Vector:
    """Return the weighted mean Σ w y of the payloads: of the folds for folded payloads, else of the raw prompts."""
    _check(payloads, weights)
    total = np.zeros(payloads.shape[1])
    for weight, payload in zip(weights, payloads, strict=True):
        total += weight * payload.astype(np.float64)
    return total.astype(np.float32)


def log_mean_exp(payloads: Matrix, weights: Weights, layout: PayloadLayout) -> Vector:
    """Return log Σ w exp(y) for the sinks, and the weighted mean for everything else.

    Up to log S this equals the sink of the concatenated prompt columns of all sites. The mean of folds corresponds to
    their geometric mean instead.
    """
    mean = weighted_mean(payloads, weights)
    start = 0
    for name, shape in layout.shapes:
        stop = start + int(np.prod(shape))
        if name == "sinks":
            sinks = payloads[:, start:stop].astype(np.float64)
            top = sinks.max(axis=0)
            total = np.zeros(stop - start)
            for weight, row in zip(weights, sinks, strict=True):
                total += weight * np.exp(row - top)
            mean[start:stop] = (np.log(total) + top).astype(np.float32)
        start = stop
    return mean


def geometric_median(
    payloads: Matrix, weights: Weights, *, smoothing: float = 1e-6, tolerance: float = 1e-7, steps: int = 1000
) -> Vector:
    """Return the weighted geometric median (RFA, Pillutla et al. 2022, Algorithm 2: smoothed Weiszfeld algorithm).

    It minimises Σ w ||z - y||. Arbitrary points with less than half of the weight cannot move it arbitrarily far. The
    search starts at the coordinate-wise median. It stops when a step is shorter than `tolerance` times the median
    distance. Both choices make the search robust against distant points.
    """
    _check(payloads, weights)
    points = payloads.astype(np.float64)
    centre = np.median(points, axis=0)
    for _ in range(steps):
        distances = np.linalg.norm(points - centre, axis=1)
        pull = weights / np.maximum(distances, smoothing)
        before, centre = centre, (pull / pull.sum()) @ points
        if np.linalg.norm(centre - before) <= tolerance * max(float(np.median(distances)), smoothing):
            break
    return centre.astype(np.float32)


def fednova(x: Vector, payloads: Matrix, weights: Weights, steps: npt.NDArray[np.int64]) -> Vector:
    """Return x - τ Σ w (x - y) / τᵢ with τ = Σ w τᵢ (FedNova, Wang et al. 2020, Eq. 6 with plain SGD's aᵢ = τᵢ).

    Sites with more local steps do not have more influence. With equal steps at all sites the result is the weighted
    mean. Momentum and AdamW have another exact normaliser; for them this one only balances the numbers of steps.
    """
    _check(payloads, weights)
    if len(steps) != len(payloads) or (np.asarray(steps) < 1).any():
        raise AggregationError(f"local steps {list(steps)} must be at least 1 for each of {len(payloads)} sites")
    start = x.astype(np.float64)
    effective = float(weights @ steps)
    direction = np.zeros(len(x))
    for weight, payload, taken in zip(weights, payloads, steps, strict=True):
        direction += weight * (start - payload.astype(np.float64)) / taken
    return (start - effective * direction).astype(np.float32)


def scaffold(x: Vector, payloads: Matrix, weights: Weights, rate: float) -> Vector:
    """Return x + η Σ w (y - x): the server's step of SCAFFOLD (Karimireddy et al. 2020, Algorithm 1, line 16)."""
    _check(payloads, weights)
    start = x.astype(np.float64)
    direction = np.zeros(len(x))
    for weight, payload in zip(weights, payloads, strict=True):
        direction += weight * (payload.astype(np.float64) - start)
    return (start + rate * direction).astype(np.float32)


def feddyn_control(control: Vector, x: Vector, payload: Vector, alpha: float) -> Vector:
    """Return hᵢ - α (y - x), the site's gradient at its final payload (FedDyn, Acar et al. 2021, Algorithm 1)."""
    return (control - alpha * (payload.astype(np.float64) - x)).astype(np.float32)


def feddyn(payloads: Matrix, weights: Weights, control: Vector, alpha: float) -> Vector:
    """Return Σ w y - h / α, where h is the mean control over all sites (FedDyn, Acar et al. 2021, Algorithm 1)."""
    return (weighted_mean(payloads, weights) - control.astype(np.float64) / alpha).astype(np.float32)


def control_mean(controls: Mapping[str, Vector], sites: int, like: Vector) -> Vector:
    """Return the mean control (n,) over all `sites`; the control of a site without an entry is zero."""
    total = np.zeros(like.shape)
    for site in sorted(controls):
        total += controls[site].astype(np.float64)
    return (total / sites).astype(np.float32)


def _check(payloads: Matrix, weights: Weights) -> None:
    if payloads.ndim != 2 or not len(payloads):
        raise AggregationError(f"payloads have shape {payloads.shape}; at least one row of n values is needed")
    if weights.shape != (len(payloads),) or not np.isclose(weights.sum(), 1.0) or (weights < 0).any():
        raise AggregationError(f"weights {weights} must be {len(payloads)} shares that sum to one")
    if not np.isfinite(payloads).all():
        raise AggregationError("payloads must be finite")
