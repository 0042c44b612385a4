"""Membership inference: decide from one score per image whether a site trained on the image.

Two classic scores use data that a server holds after a round. The first is the drop of an image's loss from the prompts
that the server sent to the prompts that it received (after Yeom et al. 2018, arXiv 1709.01604). The second is the
cosine between the update and the image's own descent direction (the cosine attack of Li et al. 2023, ICLR). Neither is
calibrated on shadow models, as a stronger attacker's score would be.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ept_fed.evaluation.bootstrap import Interval, measure, resample, summarise
from ept_fed.evaluation.metrics import Array
from ept_fed.evaluation.weighted_metrics import Sample, class_ranks

__all__ = [
    "Detection",
    "match_classes",
    "measure_advantage",
    "measure_detection",
    "measure_detections",
    "score_alignment",
    "score_batches",
    "score_loss_drop",
]

_DRAWS = 300


def score_loss_drop(before: Array, after: Array) -> Array:
    """Return (n,) scores: the losses (n,) with the prompts before minus those after; members score higher."""
    return before - after


def score_alignment(gradients: Array, update: Array) -> Array:
    """Return (n,) cosines of the update (d,) with each image's descent direction; members score higher.

    Args:
        gradients: (n, d) gradients of each image's loss, at the prompts before.
        update: (d,) prompts after minus prompts before.

    A gradient or an update of zeros has no direction: its cosine is 0.
    """
    lengths = np.linalg.norm(gradients, axis=1) * np.linalg.norm(update)
    return np.divide(-(gradients @ update), lengths, out=np.zeros(len(gradients)), where=lengths > 0)


def score_batches(gradients: Array, member: Array, size: int, rng: np.random.Generator) -> Array:
    """Return (n,) cosines of each image's descent direction with that of a batch of members.

    A member is compared with its own batch, every other image with a random batch.

    Args:
        gradients: (n, d) gradients of each image's loss.
        member: (n,) bool.
        size: size of a batch; some are larger if it does not divide the number of members.
        rng: draws the batches, and the batch for every other image.
    """
    own = rng.permutation(np.flatnonzero(member))
    batches = np.array_split(own, max(1, len(own) // size))
    scores = np.empty(len(member))
    for batch in batches:
        scores[batch] = score_alignment(gradients[batch], -gradients[batch].mean(axis=0))
    for index in np.flatnonzero(~member):
        batch = batches[rng.integers(len(batches))]
        scores[index : index + 1] = score_alignment(gradients[index : index + 1], -gradients[batch].mean(axis=0))
    return scores


def match_classes(members: Array, others: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return ascending indices of members and of others, with equal counts in every class.

    A K-shot sample has other class frequencies than the remaining images. Without this step, a score that detects only
    the class would seem to detect members.

    Args:
        members: (m,) class indices.
        others: (o,) class indices.
        rng: draws the images.
    """
    chosen: tuple[list[Array], list[Array]] = ([], [])
    for label in np.intersect1d(members, others):
        places = [np.flatnonzero(labels == label) for labels in (members, others)]
        count = min(map(len, places))
        for found, own in zip(chosen, places, strict=True):
            found.append(rng.choice(own, count, replace=False))
    first, second = (np.sort(np.concatenate(found)) if found else np.empty(0, dtype=np.int64) for found in chosen)
    return first, second


def measure_advantage(scores: Array, member: Array, groups: Sequence[str], rng: np.random.Generator) -> Interval:
    """Return the AUC of members against non-members, with its 95 % bootstrap interval over groups.

    Args:
        scores: (n,) higher for a member; (n, S) for S scores, whose mean AUC is measured, not the AUC of their mean.
        member: (n,) bool.
        groups: (n,) patients; an interval needs at least `MIN_GROUPS` of them.
        rng: draws the resamples.

    Returns:
        0.5 means guessing, 1 perfect separation; NaN if members or non-members are missing.
    """
    columns = scores.reshape(len(scores), -1)
    ranks = class_ranks(Sample.of(np.broadcast_to(member[:, None], columns.shape), columns, "multi_label"))
    # All scores use the same images in a resample, so an error that the scores share does not average out.
    value, draws = measure(ranks, len(scores))[0].mean(), resample(ranks, groups, rng)[:, 0].mean(axis=1)
    return summarise(float(value), draws, len(set(groups)))


def measure_detection(scores: Array, member: Array, rate: float) -> float:
    """Return the share of members that are found if at most this share of the others is taken for members.

    The AUC is a mean over all images; this is what an attacker knows of single ones (Carlini et al. 2022, LiRA).

    Args:
        scores: (n,) higher for a member.
        member: (n,) bool.
        rate: the share of false positives.
    """
    others = np.sort(scores[~member])
    if not len(others) or not member.any():
        return float("nan")
    # The largest number of false positives that is allowed; the threshold is the score of the next other image.
    threshold = others[len(others) - 1 - int(rate * len(others))]
    return float(np.mean(scores[member] > threshold))


@dataclass(frozen=True)
class Detection:
    """How well members are found, with 95 % intervals over patients.

    Attributes:
        auc: 0.5 means guessing.
        at_1: share of members that are found if at most 1 % of the others is taken for members.
        at_01: the same for 0.1 %; with fewer than 1,000 others, for no other at all.
    """

    auc: Interval
    at_1: Interval
    at_01: Interval


def measure_detections(scores: Array, member: Array, groups: Sequence[str], rng: np.random.Generator) -> Detection:
    """Return how well members are found in several runs by one threshold for all of them.

    Args:
        scores: (S, n) higher for a member, of n candidates in S runs.
        member: (S, n) bool.
        groups: (n,) patients; a resample takes a patient's candidates with all their runs.
        rng: draws the resamples.
    """

    def found(columns: Array) -> tuple[float, float, float]:
        flat, truth = scores[:, columns].ravel(), member[:, columns].ravel()
        if truth.all() or not truth.any():
            return np.nan, np.nan, np.nan
        order = np.argsort(-flat, kind="stable")
        hits, false = np.cumsum(truth[order]), np.cumsum(~truth[order])
        # Equal scores are one step of the curve.
        steps = np.append(np.flatnonzero(np.diff(flat[order])), len(flat) - 1)
        hits, false = np.append(0, hits[steps]), np.append(0, false[steps])
        auc = np.trapezoid(hits, false) / (hits[-1] * false[-1])
        at_1, at_01 = (
            hits[np.searchsorted(false, int(rate * false[-1]), "right") - 1] / hits[-1] for rate in (0.01, 0.001)
        )
        return float(auc), float(at_1), float(at_01)

    names, index = np.unique(np.asarray(groups), return_inverse=True)
    of_group = [np.flatnonzero(index == number) for number in range(len(names))]
    value = found(np.arange(scores.shape[1]))
    drawn = rng.integers(len(names), size=(_DRAWS, len(names)))
    draws = np.array([found(np.concatenate([of_group[number] for number in row])) for row in drawn])
    auc, at_1, at_01 = (summarise(value[k], draws[:, k], len(names)) for k in range(3))
    return Detection(auc, at_1, at_01)
