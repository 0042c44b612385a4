"""Linear discriminant analysis in closed form: a head that is computed from features instead of trained.

Fisher 1936, with the covariance shrunk towards a multiple of the identity as in Friedman 1989. For K-shot samples the
number of images is far below D, so the within-class covariance has no inverse unless it is shrunk.
"""

import numpy as np
import numpy.typing as npt

__all__ = ["fit_discriminant"]

Array = npt.NDArray[np.float64]

_LOGIT_STD = 2.0  # wide enough to tell classes apart, narrow enough that the loss still has a gradient for the prompts
_ABSENT_LOGIT = -2 * _LOGIT_STD


def fit_discriminant(
    features: npt.NDArray[np.floating], labels: npt.NDArray[np.floating | np.integer], *, classes: int, shrinkage: float
) -> tuple[Array, Array]:
    """Return weight (C, D) and bias (C,) of the discriminant, so that logits are features @ weight.T + bias.

    Single label: equal priors and one covariance within classes; the logits have mean 0 over the present classes, and
    over the given features a standard deviation of 2. A class without images gets a constant logit below the others.
    Multi-label: one such analysis per class, of the images with it against those without, half the difference
    each; a label that all images carry gets a constant logit as far above 0 as an absent one is below.

    Args:
        features: (n, D).
        labels: (n,) class indices, or (n, C) of 0 and 1.
        classes: C.
        shrinkage: weight of the identity in the covariance, in (0, 1].

    Raises:
        ValueError: if a number is not finite, shapes do not fit, or shrinkage is outside (0, 1].
    """
    x = np.asarray(features, dtype=np.float64)
    y = np.asarray(labels)
    if x.ndim != 2 or not len(x) or len(y) != len(x) or (y.ndim == 2 and y.shape[1] != classes):
        raise ValueError(f"features {x.shape} and labels {y.shape} of {classes} classes do not fit together")
    if not 0 < shrinkage <= 1:
        raise ValueError(f"shrinkage = {shrinkage}: choose a number above 0 and up to 1")
    if not np.isfinite(x).all():
        raise ValueError("features are not finite")
    weight, bias = np.zeros((classes, x.shape[1])), np.full(classes, _ABSENT_LOGIT)
    if y.ndim == 1:
        present = np.unique(y)
        weight[present], bias[present] = _analyse(x, np.searchsorted(present, y), shrinkage)
        return weight, bias
    for c in range(classes):
        groups = (y[:, c] > 0).astype(int)
        if groups.any() and not groups.all():
            both, offsets = _analyse(x, groups, shrinkage)
            weight[c], bias[c] = both[1], offsets[1]
        elif groups.all():
            bias[c] = -_ABSENT_LOGIT
    return weight, bias


def _analyse(x: Array, groups: npt.NDArray[np.integer], shrinkage: float) -> tuple[Array, Array]:
    """Return weight (G, D) and bias (G,) for groups 0 … G - 1, all of which occur."""
    count = int(groups.max()) + 1
    centres = np.stack([x[groups == g].mean(0) for g in range(count)])
    within = x - centres[groups]
    covariance = (1 - shrinkage) * (within.T @ within) / len(x)
    spread = np.einsum("nd,nd->", within, within) / x.size
    if spread == 0.0:
        # Without any spread within groups every direction counts alike.
        spread, shrinkage = 1.0, 1.0
    covariance[np.diag_indices_from(covariance)] += shrinkage * spread
    weight = np.linalg.solve(covariance, centres.T).T
    bias = -0.5 * np.einsum("gd,gd->g", weight, centres)
    weight -= weight.mean(0)
    bias -= bias.mean()
    std = float(np.std(x @ weight.T + bias))
    scale = _LOGIT_STD / std if std > 0 else 0.0
    return weight * scale, bias * scale
