"""Conformal prediction sets: all classes that cannot be excluded at a given error rate, instead of one class.

This is split conformal prediction with the least ambiguous score 1 - p(class) (Sadinle, Lei and Wasserman 2019). There
is one threshold per class (label-conditional, Vovk 2012). A validation split with equal numbers per class has another
class distribution than the test split, and only thresholds per class do not depend on this distribution.
"""

from dataclasses import dataclass

import numpy as np

from ept_fed.evaluation.metrics import Array

__all__ = ["ConformalResult", "assess_sets", "class_thresholds", "prediction_sets"]


@dataclass(frozen=True)
class ConformalResult:
    """Coverage and size of prediction sets on the test images.

    Attributes:
        target: the requested coverage, 1 - alpha.
        coverage: share of images whose set contains the true class; NaN without images.
        class_coverage: (C,) the same by true class; NaN for a class without images.
        mean_size: mean number of classes in a set.
        single: share of images with exactly one class in the set.
        empty: share of images with an empty set.
        unlimited: classes with too few validation images for a threshold; they are in every set.
    """

    target: float
    coverage: float
    class_coverage: tuple[float, ...]
    mean_size: float
    single: float
    empty: float
    unlimited: tuple[int, ...]


def class_thresholds(labels: Array, scores: Array, alpha: float = 0.1) -> Array:
    """Return (C,) the largest score 1 - p(c) that keeps class c in a set; infinite for a class with too few images.

    With n validation images of a class, the threshold is their ceil((n + 1)(1 - alpha))-th smallest score. The "+ 1" is
    the finite-sample correction that makes the coverage of the next image at least 1 - alpha. Below n = 1/alpha - 1
    this rank does not exist, and the coverage is guaranteed only if every set contains the class.

    Args:
        labels: (n,) class indices of the validation split.
        scores: (n, C) probabilities.
        alpha: tolerated share of images of a class whose set does not contain the class, in (0, 1).

    Raises:
        ValueError: for alpha outside (0, 1).
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha {alpha} must be between 0 and 1")
    thresholds = np.full(scores.shape[1], np.inf)
    for c in range(scores.shape[1]):
        misfits = np.sort(1.0 - scores[labels == c, c].astype(np.float64))
        # Rounded before ceil: (9 + 1)(1 - 0.1) is 9.000000000000002 in floating point.
        rank = int(np.ceil(np.round((len(misfits) + 1) * (1 - alpha), 9)))
        if rank <= len(misfits):
            thresholds[c] = misfits[rank - 1]
    return thresholds


def prediction_sets(scores: Array, thresholds: Array) -> Array:
    """Return the prediction sets as (n, C) bool: whether the set of an image contains a class."""
    return np.asarray(1.0 - scores.astype(np.float64) <= thresholds[None, :])


def assess_sets(labels: Array, sets: Array, thresholds: Array, alpha: float = 0.1) -> ConformalResult:
    """Return coverage and size of sets (n, C) on test images with class indices (n,)."""
    n, C = sets.shape
    covered = sets[np.arange(n), labels]
    sizes = sets.sum(axis=1)
    nothing = float("nan")
    return ConformalResult(
        target=1 - alpha,
        coverage=float(covered.mean()) if n else nothing,
        class_coverage=tuple(float(covered[labels == c].mean()) if (labels == c).any() else nothing for c in range(C)),
        mean_size=float(sizes.mean()) if n else nothing,
        single=float((sizes == 1).mean()) if n else nothing,
        empty=float((sizes == 0).mean()) if n else nothing,
        unlimited=tuple(int(c) for c in np.flatnonzero(np.isinf(thresholds))),
    )
