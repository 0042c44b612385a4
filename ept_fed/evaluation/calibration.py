"""Calibration of probabilities: measures of calibration, and temperature scaling with one temperature per site.

Reliability curve and expected calibration error follow Naeini et al. 2015 and Guo et al. 2017. The bins have equal
mass, as in Nixon et al. 2019, because bins of equal width are mostly empty on a few hundred images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar

from ept_fed.evaluation.metrics import Array

__all__ = [
    "BINS",
    "ReliabilityBin",
    "apply_temperature",
    "brier_score",
    "calibration_error",
    "fit_temperature",
    "reliability_curve",
]

BINS = 15

_LOG_RANGE = (-3.0, 3.0)
_PRIOR_SPREAD = 0.5


def apply_temperature(scores: Array, temperature: float, task: str) -> Array:
    """Return probabilities (n, C) after dividing the logits behind `scores` (n, C) by the temperature.

    Raises:
        ValueError: if the temperature is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature {temperature} must be positive")
    clipped = np.clip(scores.astype(np.float64), 1e-12, 1.0 - 1e-12)
    if task == "multi_label":
        return np.asarray(1.0 / (1.0 + np.exp(-np.log(clipped / (1.0 - clipped)) / temperature)))
    logits = np.log(clipped) / temperature
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def fit_temperature(labels: Array, scores: Array, task: str) -> float:
    """Return the temperature of highest posterior probability in [e^-3, e^3]; 1.0 without images.

    The likelihood is that of the labels. The prior of log T is normal with mean 0 and standard deviation 0.5. On
    hundreds of images, the prior has almost no effect. It matters on the ten images that a few-shot site may have:
    without the prior, the temperature would run to its lower bound as soon as all of them are predicted correctly, and
    the site would get probabilities of 0.9999.

    Args:
        labels: (n,) class indices, or (n, C) in {0, 1} for multi-label; of a validation split, never of the test split.
        scores: (n, C) probabilities.
        task: single_label or multi_label.
    """
    n, C = scores.shape
    if not n or not np.isfinite(scores).all():
        return 1.0
    hot = labels.astype(bool) if task == "multi_label" else np.arange(C)[None, :] == labels[:, None]

    def objective(log_temperature: float) -> float:
        calibrated = apply_temperature(scores, float(np.exp(log_temperature)), task)
        surprise = -np.log(np.clip(calibrated[hot], 1e-12, 1.0)).sum()
        if task == "multi_label":
            surprise -= np.log(np.clip(1.0 - calibrated[~hot], 1e-12, 1.0)).sum()
        return float(surprise + 0.5 * (log_temperature / _PRIOR_SPREAD) ** 2)

    found = minimize_scalar(objective, bounds=_LOG_RANGE, method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))


@dataclass(frozen=True)
class ReliabilityBin:
    """Predictions of similar confidence: their mean confidence, the share of correct ones, and their number."""

    confidence: float
    observed: float
    count: int


def reliability_curve(labels: Array, scores: Array, task: str, bins: int = BINS) -> tuple[ReliabilityBin, ...]:
    """Return bins of equal mass in order of rising confidence; without images there are none.

    Args:
        labels: (n,) class indices, or (n, C) in {0, 1} for multi-label.
        scores: (n, C) probabilities.
        task: single_label has one point per image: the probability of the top class, and whether this class is correct.
            multi_label has one point per image and class: the probability, and whether the image has the class.
        bins: maximum number of bins. Equal confidences are in the same bin, so the result does not depend on the order
            of the rows. If many confidences are equal, there are fewer bins.
    """
    if not len(labels):
        return ()
    if task == "multi_label":
        confidence, right = scores.ravel().astype(np.float64), labels.astype(bool).ravel()
    else:
        confidence, right = scores.max(axis=1).astype(np.float64), scores.argmax(axis=1) == labels
    edges = np.unique(np.quantile(confidence, np.arange(1, bins) / bins, method="inverted_cdf"))
    places = np.searchsorted(edges, confidence, side="left")
    return tuple(
        ReliabilityBin(float(confidence[inside].mean()), float(right[inside].mean()), int(inside.sum()))
        for place in range(len(edges) + 1)
        if (inside := places == place).any()
    )


def calibration_error(curve: Sequence[ReliabilityBin]) -> float:
    """Return the expected calibration error: the mean of |confidence - observed| weighted by count; NaN if empty.

    It is biased upwards on few images, because every bin's share is noisy. A bootstrap would increase this bias, so no
    interval is given for it anywhere.
    """
    images = sum(part.count for part in curve)
    return sum(part.count * abs(part.confidence - part.observed) for part in curve) / images if images else float("nan")


def brier_score(labels: Array, scores: Array, task: str) -> float:
    """Return the Brier score: squared errors, summed over classes (multi-label: mean), and averaged over images."""
    if not len(labels):
        return float("nan")
    C = scores.shape[1]
    hot = labels.astype(bool) if task == "multi_label" else np.arange(C)[None, :] == labels[:, None]
    squares = (scores.astype(np.float64) - hot) ** 2
    return float(squares.mean() if task == "multi_label" else squares.sum(axis=1).mean())
