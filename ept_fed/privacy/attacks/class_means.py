"""Membership inference from the mean features of a class, for an attacker who has public images of the same kind.

Let the features of class c be normal with mean μ and covariance Σ within classes, and let m be the mean of n members.
If an image x is one of them, m has the mean μ + (x - μ) / n, otherwise μ; both with covariance Σ / n, up to one part in
n. The logarithm of the ratio of the two likelihoods (Neyman and Pearson 1933) is, up to a constant,

    (x - μ)ᵀ Σ⁻¹ (m - μ) - (x - μ)ᵀ Σ⁻¹ (x - μ) / (2 n).

Under secure aggregation m is the mean over the images of all sites, and only n is larger. The two hypotheses separate
as the square root of D / n for D features, so a sum over few images hides nobody.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from sklearn.covariance import ledoit_wolf

from ept_fed.evaluation.metrics import Array

__all__ = ["PublicFeatures", "score_members"]

_PRIOR = 20


@dataclass(frozen=True)
class PublicFeatures:
    """What an attacker knows of features from public images.

    Attributes:
        means: (S, C, D), mean by site and class, shrunk towards the mean of the class over all sites.
        precision: (D, D), inverse of the covariance within sites and classes.
    """

    means: Array
    precision: Array

    @classmethod
    def of(cls, features: Array, labels: Array, sites: Array, *, classes: int) -> Self:
        """Return the estimate from public images; the covariance is shrunk after Ledoit and Wolf 2004.

        A site's mean counts as many images as the site has, and that over all sites `_PRIOR` images, so that a class of
        which a site has few public images is not taken for one far from its mean (empirical Bayes).

        Args:
            features: (n, D) features.
            labels: (n,) class indices.
            sites: (n,) site indices.
            classes: number of classes.

        Raises:
            ValueError: if a class has no public image.
        """
        missing = sorted(set(range(classes)) - set(labels.tolist()))
        if missing:
            raise ValueError(f"classes {missing} have no public image")
        x = features.astype(np.float64)
        whole = np.stack([x[labels == label].mean(axis=0) for label in range(classes)])
        means = np.repeat(whole[None], int(sites.max()) + 1, axis=0)
        for site, label in {*zip(sites.tolist(), labels.tolist(), strict=True)}:
            own = x[(sites == site) & (labels == label)]
            means[site, label] = (own.sum(axis=0) + _PRIOR * whole[label]) / (len(own) + _PRIOR)
        covariance, _ = ledoit_wolf(x - means[sites, labels], assume_centered=True)
        return cls(means, np.linalg.inv(covariance))


def score_members(
    features: Array, centre: Array, released: Array, expected: Array, members: Array, precision: Array
) -> Array:
    """Return the log likelihood ratios (n,) of candidates; members score higher.

    Args:
        features: (n, D) features of the candidates.
        centre: (n, D) mean of each candidate's class at its site, from public images.
        released: (n, D) released mean of each candidate's class.
        expected: (n, D) the mean that was to be expected for it, from public images.
        members: (n,) number of images in the released mean.
        precision: (D, D) inverse of the covariance within classes.
    """
    whitened = (features - centre) @ precision
    alike = np.einsum("nd,nd->n", whitened, released - expected)
    return np.asarray(alike - np.einsum("nd,nd->n", whitened, features - centre) / (2 * members))
