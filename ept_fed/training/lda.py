"""Linear discriminant analysis in closed form: a head that is computed from features instead of trained.

Fisher 1936, with the covariance shrunk towards a multiple of the identity as in Friedman 1989. For K-shot samples the
number of images is far below D, so the within-class covariance has no inverse without shrinkage.

The head needs only a few means over the images. The mean of the sites' means, weighted by their numbers of images, is
the mean over all images. So sites that share these means get exactly the head that centralised images would give.
(FedNCM, Legate et al. 2023, shares only means, as class prototypes; Fed3R, Fanì et al. 2024, also shares second
moments, for ridge regression.)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["ClassStatistics", "average_statistics", "measure_statistics", "solve_lda"]

Array = npt.NDArray[np.float64]

_LOGIT_STD = 2.0  # large enough to separate classes, small enough that the loss still has a gradient for the prompts
_ABSENT_LOGIT = -2 * _LOGIT_STD


@dataclass(frozen=True)
class ClassStatistics:
    """Means over a set of images.

    Attributes:
        shares: (C,), share of the images that have each class.
        sums: (C, D), per class the mean over all images of the features, counted as 0 for images without the class.
        mean: (D,), mean of the features.
        moments: (D, D), mean of the outer products of the features with themselves; None if it is not known.
        resolution: a covariance below this fraction of the moments is only rounding error.
    """

    shares: Array
    sums: Array
    mean: Array
    moments: Array | None
    resolution: float = 1e-12


def measure_statistics(
    features: npt.NDArray[np.floating], labels: npt.NDArray[np.floating | np.integer], *, classes: int
) -> ClassStatistics:
    """Return the statistics of features (n, D) with labels: (n,) class indices, or (n, C) of 0 and 1.

    Raises:
        ValueError: if a feature is not finite, or shapes do not fit.
    """
    x, y = np.asarray(features, dtype=np.float64), np.asarray(labels)
    if x.ndim != 2 or not len(x) or len(y) != len(x) or (y.ndim == 2 and y.shape[1] != classes):
        raise ValueError(f"features {x.shape} and labels {y.shape} of {classes} classes do not fit together")
    if not np.isfinite(x).all():
        raise ValueError("features are not finite")
    carried = (y > 0 if y.ndim == 2 else y[:, None] == np.arange(classes)).astype(np.float64)
    return ClassStatistics(carried.mean(0), carried.T @ x / len(x), x.mean(0), x.T @ x / len(x))


def average_statistics(parts: Sequence[ClassStatistics], images: Sequence[int]) -> ClassStatistics:
    """Return the statistics of all images together from those of parts, with the number of images of each part.

    Raises:
        ValueError: if a part has no moments, or the two lists have different lengths.
    """
    moments = [of.moments for of in parts if of.moments is not None]
    if not len(parts) == len(images) == len(moments):
        raise ValueError("every part needs moments and a number of images")
    columns = ([of.shares for of in parts], [of.sums for of in parts], [of.mean for of in parts], moments)
    shares, sums, mean, products = (np.average(column, axis=0, weights=images) for column in columns)
    return ClassStatistics(shares, sums, mean, products)


def solve_lda(
    images: ClassStatistics, centres: ClassStatistics, *, multi_label: bool, shrinkage: float
) -> tuple[Array, Array]:
    """Return weight (C, D) and bias (C,) of the LDA head, so that logits are features @ weight.T + bias.

    Single label: equal priors and one covariance within classes. The logits have mean 0 over the present classes, and a
    standard deviation of 2 over the images. A class without images gets a constant logit below the others.

    Multi-label: one such analysis per class, of the images with the class against those without it. The logit of the
    class is half the difference between the two. A label that all images have gets a constant logit, as far above 0 as
    that of an absent label is below 0.

    Args:
        images: statistics with moments, which give the covariance of the features around the centres.
        centres: statistics whose class means are the centres; the same as `images`, or those of more images. A class
            that only `images` has keeps its own mean.
        multi_label: whether an image may have several classes.
        shrinkage: weight of the identity in the covariance, in (0, 1].

    Raises:
        ValueError: if shrinkage is outside (0, 1], or the images have no moments.
    """
    if not 0 < shrinkage <= 1:
        raise ValueError(f"shrinkage = {shrinkage}: choose a number above 0 and up to 1")
    classes, width = images.sums.shape
    weight, bias = np.zeros((classes, width)), np.full(classes, _ABSENT_LOGIT)
    known = centres.shares + images.shares > 0
    if not multi_label:
        weight[known], bias[known] = _analyse(
            images,
            (images.shares[known], images.sums[known]),
            (centres.shares[known], centres.sums[known]),
            shrinkage,
        )
        return weight, bias
    for c in np.flatnonzero(known).tolist():
        own, centring = _without_and_with(images, c), _without_and_with(centres, c)
        if (own[0] + centring[0] > 0).all():
            both, offsets = _analyse(images, own, centring, shrinkage)
            weight[c], bias[c] = both[1], offsets[1]
        else:
            bias[c] = -_ABSENT_LOGIT
    return weight, bias


_Groups = tuple[Array, Array]


def _without_and_with(statistics: ClassStatistics, c: int) -> _Groups:
    share = statistics.shares[c]
    return np.array([1 - share, share]), np.stack([statistics.mean - statistics.sums[c], statistics.sums[c]])


def _analyse(images: ClassStatistics, own: _Groups, centring: _Groups, shrinkage: float) -> tuple[Array, Array]:
    """Return weight (G, D) and bias (G,) for groups of images, each given by shares (G,) and sums (G, D).

    The covariance within groups is the mean over images of (x - centre)(x - centre)', expanded into the known means.
    """
    if images.moments is None:
        raise ValueError("a covariance needs moments")
    shares, sums = own
    centres = np.where(centring[0][:, None] > 0, _divide(*centring), _divide(*own))
    crossed = sums.T @ centres
    within = images.moments - crossed - crossed.T + (centres.T * shares) @ centres
    spread, level = float(np.trace(within)) / len(within), float(np.trace(images.moments)) / len(within)
    if spread <= images.resolution * level:
        # Without spread within groups, all directions get the same weight.
        spread, shrinkage = 1.0, 1.0
    covariance = (1 - shrinkage) * within
    covariance[np.diag_indices_from(covariance)] += shrinkage * spread
    weight = np.linalg.solve(covariance, centres.T).T
    bias = -0.5 * np.einsum("gd,gd->g", weight, centres)
    weight -= weight.mean(0)
    bias -= bias.mean()
    squares = np.einsum("gd,gd->g", weight @ images.moments, weight) + 2 * bias * (weight @ images.mean) + bias**2
    variance = float(squares.mean())
    scale = _LOGIT_STD / np.sqrt(variance) if variance > 0 else 0.0
    return weight * scale, bias * scale


def _divide(shares: Array, sums: Array) -> Array:
    """Return the groups' means (G, D), 0 for a group without images."""
    return sums / np.where(shares > 0, shares, 1.0)[:, None]
