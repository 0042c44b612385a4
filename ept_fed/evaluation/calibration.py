"""Calibration of probabilities after training: one temperature per site (Guo et al. 2017)."""

import numpy as np
from scipy.optimize import minimize_scalar

from ept_fed.evaluation.metrics import Array, classification_metrics

__all__ = ["apply_temperature", "fit_temperature"]

_LOG_RANGE = (-3.0, 3.0)


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
    """Return the temperature in [e^-3, e^3] that minimises the negative log likelihood; 1.0 without images.

    Args:
        labels: (n,) class indices, or (n, C) in {0, 1} for multi-label; of a validation split, never of the test split.
        scores: (n, C) probabilities.
        task: single_label or multi_label.
    """
    if not len(labels):
        return 1.0

    def loss(log_temperature: float) -> float:
        calibrated = apply_temperature(scores, float(np.exp(log_temperature)), task)
        return classification_metrics(labels, calibrated, task)["loss"]

    found = minimize_scalar(loss, bounds=_LOG_RANGE, method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))
