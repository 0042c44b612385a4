"""Measures of the effect of tuning on features: compactness and separation of classes, and maps to plot them.

This is the calibrator view of Zu et al. 2024 (sections 3.3 and 4.2, Fig. 2) in numbers. The features of n images are
x_i. Class c has n_c images, the centre m_c = mean(x_i : y_i = c) and the covariance
S_c = mean((x_i - m_c)(x_i - m_c)ᵀ : y_i = c). All C classes have the same weight, even rare ones, as in the macro AUC:

    Σ_W = mean_c S_c,    m = mean_c m_c,    Σ_B = mean_c (m_c - m)(m_c - m)ᵀ,    Σ_T = Σ_W + Σ_B

This is linear discriminant analysis with equal priors (Hastie et al. 2009, section 4.3). Only traces are needed, and
tr S_c is the mean squared distance from the centre of the class. A class of one image has no spread. It is left out of
all measures, and a note reports this.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ept_fed.evaluation.metrics import Array

__all__ = ["CLASS_MEASURES", "MEASURES", "Measure", "embed_tsne", "find_axis", "measure_features"]

MEASURES = (
    "intra_class_distance",
    "relative_intra_class_distance",
    "between_class_separation",
    "fisher_ratio",
    "nearest_centres",
    "silhouette",
    "first_component_share",
)
CLASS_MEASURES = ("intra_class_distance", "relative_intra_class_distance", "silhouette", "first_component_share")

_PERPLEXITY = 30.0
_MIN_POINTS = 4


class Measure(NamedTuple):
    """One measure of a class, or of all classes if `label` is empty; NaN if it is undefined."""

    label: str
    name: str
    value: float


def measure_features(
    features: Array, labels: Array, classes: Sequence[str]
) -> tuple[tuple[Measure, ...], tuple[str, ...]]:
    """Return the measures of features, and a sentence for everything that could not be measured.

    The measures over all classes are, in the notation of the module's docstring:

    * intra_class_distance: tr Σ_W, in squared units of the features;
    * relative_intra_class_distance: tr Σ_W / tr Σ_T, from 0 (classes are points) to 1 (centres coincide);
    * between_class_separation: tr Σ_B, in squared units of the features;
    * fisher_ratio: tr Σ_B / tr Σ_W; infinite if classes are distinct points;
    * nearest_centres: the minimum of ‖m_a - m_b‖ / √((tr S_a + tr S_b) / 2) over pairs of classes;
    * silhouette: of Rousseeuw (1987), by scikit-learn; mean over classes of the mean over their images, -1 to 1;
    * first_component_share: λ₁ / Σ_j λ_j of the eigenvalues of the covariance of all n images.

    Measures without units do not depend on the scale of the features, so they can be compared between methods.

    The measures of a class are tr S_c, tr S_c / tr Σ_T, the mean silhouette of its images, and λ₁ / tr S_c. With few
    images, S_c is biased by the factor (n_c - 1) / n_c, and the distances of centres are biased upwards. Compare values
    before and after tuning on the same images only.

    Args:
        features: (n, D).
        labels: (n,) class indices.
        classes: C names.

    Raises:
        ValueError: if shapes or labels do not fit.
    """
    X, y = _check(features, labels, len(classes))
    finite = np.isfinite(X).all(axis=1)
    if not finite.all():
        said = f"{int((~finite).sum())} of {len(X)} images have features that are not finite: nothing is measured"
        return _undefined(classes), (said,)
    counts = np.bincount(y, minlength=len(classes))
    notes = []
    if absent := [name for name, count in zip(classes, counts, strict=True) if count == 0]:
        notes.append(f"no image of {', '.join(absent)}")
    if single := [name for name, count in zip(classes, counts, strict=True) if count == 1]:
        notes.append(f"only one image of {', '.join(single)}, left out")
    counted = np.flatnonzero(counts >= 2)
    if len(counted) == 0:
        return _undefined(classes), (*notes, "no class has two images: nothing is measured")
    kept = np.isin(y, counted)
    X, y = X[kept], y[kept]
    if _spread(X) == 0:
        return _undefined(classes), (*notes, "all images have the same features: nothing is measured")

    centres = np.stack([X[y == c].mean(axis=0) for c in counted])
    spreads = np.array([_spread(X[y == c]) for c in counted])
    within = float(spreads.mean())
    total = within + _spread(centres)
    values = {
        "intra_class_distance": within,
        "first_component_share": find_axis(X)[1],
    }
    silhouettes = np.full(len(counted), np.nan)
    if len(counted) == 1:
        notes.append(f"only {classes[counted[0]]} has two images or more: separation is undefined")
        total = float("nan")
    else:
        silhouettes = _silhouettes(X, y, counted)
        values |= {
            "relative_intra_class_distance": within / total if total else float("nan"),
            "between_class_separation": _spread(centres),
            "fisher_ratio": _ratio(_spread(centres), within),
            "nearest_centres": _nearest_centres(centres, spreads),
            "silhouette": float(silhouettes.mean()),
        }
    found = [Measure("", name, values.get(name, float("nan"))) for name in MEASURES]
    for c, name in enumerate(classes):
        own = dict.fromkeys(CLASS_MEASURES, float("nan"))
        if c in counted:
            place = int(np.flatnonzero(counted == c)[0])
            numbers = (spreads[place], spreads[place] / total, silhouettes[place], find_axis(X[y == c])[1])
            own = {measure: float(value) for measure, value in zip(CLASS_MEASURES, numbers, strict=True)}
        found += [Measure(name, measure, value) for measure, value in own.items()]
    return tuple(found), tuple(notes)


def find_axis(features: Array) -> tuple[Array, float]:
    """Return the first principal component (D,) of features (n, D), n ≥ 1, and its share of their variance.

    It is the eigenvector of the largest eigenvalue λ₁ of the covariance. Its sign makes its largest entry positive.
    Projections on it are (x - mean) · axis. For features without variance, the result is the first unit vector and NaN.
    """
    centred = _centre(np.asarray(features, dtype=np.float64))
    _, singular, rows = np.linalg.svd(centred, full_matrices=False)
    variances = singular**2
    if not variances.sum() > 0:
        return np.eye(1, centred.shape[1])[0], float("nan")
    axis: Array = rows[0] * np.sign(rows[0][np.abs(rows[0]).argmax()])
    return axis, float(variances[0] / variances.sum())


def embed_tsne(features: Array, random_state: int) -> Array | None:
    """Return the t-SNE map (n, 2) of features (n, D) (van der Maaten & Hinton 2008; scikit-learn, PCA start).

    The perplexity is 30, or (n - 1) / 3 for fewer than 91 images. The result is None for fewer than four images, and
    for features that are not finite or all equal.

    Args:
        features: (n, D).
        random_state: 32 bits, derived from the run's seed.
    """
    from sklearn.manifold import TSNE

    X = np.asarray(features, dtype=np.float64)
    if len(X) < _MIN_POINTS or not np.isfinite(X).all() or _spread(X) == 0:
        return None
    perplexity = min(_PERPLEXITY, (len(X) - 1) / 3)
    placed: Array = TSNE(perplexity=perplexity, init="pca", random_state=random_state).fit_transform(X)
    return placed.astype(np.float32)


def _check(features: Array, labels: Array, C: int) -> tuple[Array, Array]:
    X, y = np.asarray(features, dtype=np.float64), np.asarray(labels)
    if X.ndim != 2 or y.shape != X.shape[:1] or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"features {X.shape} and labels {y.shape} of {y.dtype}: need (n, D) and (n,) class indices")
    if len(y) and not (y.min() >= 0 and y.max() < C):
        raise ValueError(f"labels from {y.min()} to {y.max()}: there are {C} classes")
    return X, y


def _undefined(classes: Sequence[str]) -> tuple[Measure, ...]:
    over_all = [Measure("", name, float("nan")) for name in MEASURES]
    return (*over_all, *(Measure(label, name, float("nan")) for label in classes for name in CLASS_MEASURES))


def _centre(X: Array) -> Array:
    """Return rows (n, D) minus their mean; equal rows give exact zeros, because the first row is subtracted first."""
    moved = X - X[0]
    centred: Array = moved - moved.mean(axis=0)
    return centred


def _spread(X: Array) -> float:
    """Return the trace of the covariance of rows (n, D)."""
    return float((_centre(X) ** 2).sum(axis=1).mean())


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else float("inf")


def _nearest_centres(centres: Array, spreads: Array) -> float:
    first, second = np.triu_indices(len(centres), k=1)
    distances = np.linalg.norm(centres[first] - centres[second], axis=1)
    radii = np.sqrt((spreads[first] + spreads[second]) / 2)
    return min(_ratio(float(d), float(r)) if d else 0.0 for d, r in zip(distances, radii, strict=True))


def _silhouettes(X: Array, y: Array, counted: Array) -> Array:
    """Return the mean silhouette of each class in `counted`."""
    from sklearn.metrics import silhouette_samples

    samples = silhouette_samples(X, y)
    return np.array([samples[y == c].mean() for c in counted])
