"""Membership by likelihood ratios over shadow runs, and over the updates of the other sites.

LiRA (Carlini et al. 2022, arXiv 2112.03570) trains shadow models on images that the attacker chose, some with an image
and some without, and asks under which of the two the target's answer for that image is likelier. Here an answer is a
vector: several rounds, and what the attacker sees in each. The ratio is that of two Gaussians with a mean per image
and one covariance for all images, scaled per image, since some tens of shadow runs do not determine a covariance for
each. The online attack has shadow runs with the image. The offline attack has only those without it: it takes the mean
shift by membership from the other images.

FedMIA (Zhu et al. 2025, arXiv 2402.06289) needs no shadow runs: the updates of the other sites show how the image is
answered by models that were not trained on it.
"""

from dataclasses import dataclass

import numpy as np

from ept_fed.evaluation.metrics import Array

__all__ = ["MIN_SHADOWS", "ShadowRuns", "compare_with_other_sites", "ratio_offline", "ratio_online", "true_margins"]

# Shadow runs with, and without, every candidate.
MIN_SHADOWS = 4
# The scale of an image counts as if so many more runs had shown the common one.
_PRIOR = 8.0
_RIDGE = 1e-6


@dataclass(frozen=True)
class ShadowRuns:
    """What an attacker saw in his own runs.

    Attributes:
        seen: (S, n, F) F answers for each of n candidates in each of S runs; `true_margins` of several models.
        member: (S, n) bool, whether the run was trained on the candidate.
    """

    seen: Array
    member: Array

    def without(self, run: int) -> "ShadowRuns":
        """Return these runs without one, which can then serve as a target."""
        others = np.arange(len(self.member)) != run
        return ShadowRuns(self.seen[others], self.member[others])

    @property
    def enough(self) -> bool:
        """Whether every candidate was a member, and was none, in at least `MIN_SHADOWS` runs."""
        inside = self.member.sum(axis=0)
        return bool(min(inside.min(), (len(self.member) - inside).min()) >= MIN_SHADOWS)


def true_margins(logits: Array, labels: Array) -> Array:
    """Return log(p / (1 - p)) (n,) of the true class; for several labels per image, the mean over the classes.

    These are nearly Gaussian over models, which losses and probabilities are not (LiRA, figure 4).

    Args:
        logits: (n, C).
        labels: (n,) class indices, or (n, C) of 0 and 1.
    """
    scores = logits.astype(np.float64)
    if labels.ndim == 2:
        return np.asarray(np.mean(np.where(labels > 0.5, scores, -scores), axis=1))
    rows = np.arange(len(scores))
    own, others = scores[rows, labels], scores.copy()
    others[rows, labels] = -np.inf
    return np.asarray(own - np.logaddexp.reduce(others, axis=1))


def ratio_online(seen: Array, shadows: ShadowRuns) -> Array:
    """Return log likelihood ratios (n,) of the target's answers (n, F); members score higher.

    Raises:
        ValueError: if a candidate was a member, or was none, in too few shadow runs.
    """
    inside, outside = _means(shadows, member=True), _means(shadows, member=False)
    solve, scale = _spread(shadows, inside, outside)
    near, far = (np.einsum("nf,nf->n", x, x @ solve) for x in (seen - inside, seen - outside))
    return np.asarray((far - near) / (2.0 * scale))


def ratio_offline(seen: Array, shadows: ShadowRuns, groups: Array) -> Array:
    """Return log likelihood ratios (n,) of the target's answers (n, F) without shadow runs that contain the candidate.

    Args:
        seen: (n, F).
        shadows: of each candidate, only the runs without it are used for its score.
        groups: (n,) patients; the shift by membership comes from the images of other patients.

    Raises:
        ValueError: as for `ratio_online`.
    """
    inside, outside = _means(shadows, member=True), _means(shadows, member=False)
    solve, scale = _spread(shadows, inside, outside)
    shift = inside - outside
    _, patient = np.unique(groups, return_inverse=True)
    sums = np.zeros((patient.max() + 1, shift.shape[1]))
    np.add.at(sums, patient, shift)
    others = len(shift) - np.bincount(patient)[patient]
    expected = (shift.sum(axis=0) - sums[patient]) / np.maximum(others, 1)[:, None]
    moved = seen - outside - expected / 2.0
    return np.asarray(np.einsum("nf,nf->n", moved @ solve, expected) / scale)


def compare_with_other_sites(own: Array, others: Array) -> Array:
    """Return scores (n,): how much better a site's updates answer for its candidates than those of the other sites.

    Args:
        own: (R, n) margins under the update of the candidates' own site in each of R rounds.
        others: (R, K, n) margins under the updates of the K other sites in these rounds, K at least 2.

    Returns:
        The mean over rounds of the difference to the mean of the others, in units of their standard deviation, which is
        pooled over the candidates because K is small.
    """
    if others.shape[1] < 2:
        raise ValueError("at least two other sites are needed to see how their updates vary")
    spread = np.sqrt(others.var(axis=1, ddof=1).mean(axis=1)) + 1e-12
    return np.asarray(((own - others.mean(axis=1)) / spread[:, None]).mean(axis=0))


def _means(shadows: ShadowRuns, *, member: bool) -> Array:
    """Return the mean answers (n, F) of the runs with, or without, each candidate."""
    chosen = shadows.member if member else ~shadows.member
    count = chosen.sum(axis=0)
    if count.min() < MIN_SHADOWS:
        raise ValueError(f"a candidate has only {count.min()} shadow runs {'with' if member else 'without'} it")
    return np.asarray(np.einsum("sn,snf->nf", chosen, shadows.seen) / count[:, None])


def _spread(shadows: ShadowRuns, inside: Array, outside: Array) -> tuple[Array, Array]:
    """Return the inverse (F, F) of the answers' common covariance, and the scale (n,) of each candidate's own."""
    centred = shadows.seen - np.where(shadows.member[..., None], inside[None], outside[None])
    runs, candidates, width = centred.shape
    covariance = np.einsum("snf,sng->fg", centred, centred) / (candidates * (runs - 2))
    covariance += _RIDGE * np.trace(covariance) / width * np.eye(width) + 1e-12 * np.eye(width)
    solve = np.linalg.inv(covariance)
    own = np.einsum("snf,fg,sng->n", centred, solve, centred) / width
    return solve, np.asarray((own + _PRIOR) / (runs - 2 + _PRIOR))
