"""Operating points of a classifier: thresholds for a target sensitivity, ROC curves, and confusion matrices."""

import numpy as np

from ept_fed.evaluation.metrics import Array

__all__ = ["choose_threshold", "confusion_matrix", "roc_points"]


def choose_threshold(truth: Array, scores: Array, sensitivity: float) -> float:
    """Return the highest threshold t at which "score >= t" finds at least this share of the positives.

    Args:
        truth: (n,) bool, of a validation split, never of the test split.
        scores: (n,) probabilities of the class.
        sensitivity: target in (0, 1].

    Returns:
        a threshold; NaN without positives.

    Raises:
        ValueError: for a target outside (0, 1].
    """
    if not 0 < sensitivity <= 1:
        raise ValueError(f"sensitivity {sensitivity} must be above 0 and at most 1")
    positives = np.sort(scores[truth.astype(bool)].astype(np.float64))[::-1]
    if not len(positives):
        return float("nan")
    wanted = int(np.ceil(np.round(sensitivity * len(positives), 9)))
    return float(positives[wanted - 1])


def roc_points(truth: Array, scores: Array, maximum: int = 200) -> tuple[tuple[float, float], ...]:
    """Return the ROC points (1 - specificity, sensitivity) from (0, 0) to (1, 1) by falling threshold.

    Without positives or without negatives there are no points.

    Args:
        truth: (n,) bool.
        scores: (n,) probabilities.
        maximum: maximum number of points; the curve is thinned, and its ends stay.
    """
    truth = truth.astype(bool)
    if not truth.any() or truth.all():
        return ()
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends = np.flatnonzero(np.r_[ranked[1:] != ranked[:-1], True])
    found = np.r_[0.0, truth[order].cumsum()[ends] / truth.sum()]
    wrong = np.r_[0.0, (~truth[order]).cumsum()[ends] / (~truth).sum()]
    # A point on the line between its neighbours does not change the curve.
    turns = np.r_[True, (np.diff(found[:-1]) * np.diff(wrong[1:]) != np.diff(found[1:]) * np.diff(wrong[:-1])), True]
    found, wrong = found[turns], wrong[turns]
    kept = np.unique(np.linspace(0, len(found) - 1, min(maximum, len(found))).round().astype(int))
    return tuple((float(x), float(y)) for x, y in zip(wrong[kept], found[kept], strict=True))


def confusion_matrix(labels: Array, predicted: Array, classes: int) -> Array:
    """Return (C, C) counts, rows by true and columns by predicted class; labels and predicted are (n,) indices."""
    counts = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return np.asarray(counts.reshape(classes, classes))
