"""Class means with noise that they can bear: sums of features in a space that was made from public images.

A mean over few images in several hundred dimensions tells who was trained on. Here the features are first moved into a
space in which public, labelled images of the same kind have the covariance 1 within classes, with fewer dimensions, and
cut to the length R. One image then moves the sums and numbers of all classes by at most sqrt(R² + a²), where a weighs
its count, so one addition of Gaussian noise makes the release (ε, δ)-private for adding or removing an image (Dwork and
Roth 2014, appendix A; the exact multiplier comes from the accountant). The head of the classes is that of a linear
discriminant analysis with covariance 1, which needs nothing else of the private images.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from sklearn.covariance import ledoit_wolf

__all__ = ["NoisedSums", "PublicSpace", "release_sums"]

Array = npt.NDArray[np.float64]

# The part of the sensitivity that pays for the counts: a quarter of the radius costs three per cent more noise.
_COUNT_SHARE = 0.25


@dataclass(frozen=True)
class PublicSpace:
    """A linear map of features and a radius, made from public images only.

    Attributes:
        centre: (D,) mean of the public features.
        projection: (D, r).
        radius: R, the length to which private features are cut.
    """

    centre: Array
    projection: Array
    radius: float

    @classmethod
    def of(cls, features: Array, labels: npt.NDArray[np.integer], *, dimensions: int, quantile: float = 0.9) -> Self:
        """Return the space of the first principal components of public features, with covariance 1 within classes.

        Args:
            features: (n, D) features of public images.
            labels: (n,) their class indices.
            dimensions: r, at most D and less than n.
            quantile: share of the public images that are shorter than the radius.

        Raises:
            ValueError: if there are too few images for so many dimensions.
        """
        if not 1 <= dimensions <= min(features.shape[1], len(features) - 1):
            raise ValueError(f"{len(features)} public images of {features.shape[1]} features give no {dimensions}")
        x = features.astype(np.float64)
        centre = x.mean(axis=0)
        _, _, axes = np.linalg.svd(x - centre, full_matrices=False)
        kept = axes[:dimensions].T
        moved = (x - centre) @ kept
        means = np.stack([moved[labels == label].mean(axis=0) for label in np.unique(labels)])
        within, _ = ledoit_wolf(moved - means[np.searchsorted(np.unique(labels), labels)], assume_centered=True)
        projection = kept @ np.linalg.cholesky(np.linalg.inv(within))
        lengths = np.linalg.norm((x - centre) @ projection, axis=1)
        return cls(centre, projection, float(np.quantile(lengths, quantile)))

    def move(self, features: Array) -> Array:
        """Return features (n, D) in this space, (n, r)."""
        return np.asarray((features - self.centre) @ self.projection)

    def cut(self, features: Array) -> Array:
        """Return features (n, D) in this space, each at most as long as the radius."""
        moved = self.move(features)
        lengths = np.linalg.norm(moved, axis=1, keepdims=True)
        return np.asarray(moved * np.minimum(1.0, self.radius / np.maximum(lengths, 1e-12)))

    @property
    def sensitivity(self) -> float:
        """How far one image moves the sums and the weighted counts together."""
        return self.radius * float(np.hypot(1.0, _COUNT_SHARE))


@dataclass(frozen=True)
class NoisedSums:
    """What is released: sums (C, r) of the classes' features and counts (C,), both with noise.

    Attributes:
        sums: (C, r).
        counts: (C,), not whole numbers.
        deviation: standard deviation of the noise on each number of the sums.
        count_deviation: that of the noise on each count.
    """

    sums: Array
    counts: Array
    deviation: float
    count_deviation: float

    def head(self) -> tuple[Array, Array]:
        """Return weight (C, r) and bias (C,) of the discriminant with covariance 1; a class without images is last."""
        there = self.counts >= 1
        means = np.where(there[:, None], self.sums / np.maximum(self.counts, 1.0)[:, None], 0.0)
        bias = np.where(there, -0.5 * np.einsum("cr,cr->c", means, means), -np.inf)
        return means, bias


def release_sums(
    space: PublicSpace,
    features: Array,
    labels: npt.NDArray[np.integer],
    *,
    classes: int,
    noise_multiplier: float,
    rng: np.random.Generator,
) -> NoisedSums:
    """Return the noised sums of features (n, D) with labels (n,).

    A release to others needs noise from the operating system in place of a generator (`ept_fed.privacy.dp.noise`).

    Args:
        space: made from public images.
        features: private features.
        labels: their class indices.
        classes: C.
        noise_multiplier: standard deviation of the noise by the sensitivity; 0 adds none.
        rng: draws the noise.
    """
    cut = space.cut(features)
    sums, counts = np.zeros((classes, cut.shape[1])), np.bincount(labels, minlength=classes).astype(np.float64)
    np.add.at(sums, labels, cut)
    deviation = noise_multiplier * space.sensitivity
    count_deviation = deviation / (_COUNT_SHARE * space.radius)
    return NoisedSums(
        sums + deviation * rng.standard_normal(sums.shape),
        counts + count_deviation * rng.standard_normal(classes),
        deviation,
        count_deviation,
    )
