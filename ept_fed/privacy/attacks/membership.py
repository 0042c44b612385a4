"""Membership inference: which of a site's images was trained on, judged by one number per image.

Two classic scores, from what a server holds after a round: how much an image's loss fell from the prompts it sent to
those that came back (after Yeom et al. 2018, arXiv 1709.01604), and how well the update points where that image's own
gradient would have led (the cosine attack of Li et al. 2023, ICLR). Neither is calibrated on shadow models: a stronger
attacker would be.
"""

from collections.abc import Sequence

import numpy as np

from ept_fed.evaluation.bootstrap import Interval, measure, resample, summarise
from ept_fed.evaluation.metrics import Array
from ept_fed.evaluation.weighted import Sample, class_ranks

__all__ = ["match_classes", "measure_advantage", "score_alignment", "score_batches", "score_loss_drop"]


def score_loss_drop(before: Array, after: Array) -> Array:
    """Return (n,) scores of n images from their losses (n,) under the prompts before and after; higher is a member."""
    return before - after


def score_alignment(gradients: Array, update: Array) -> Array:
    """Return (n,) cosines of the update (d,) with each image's descent direction; higher is a member.

    Args:
        gradients: (n, d) of each image's loss, at the prompts before.
        update: (d,) prompts after minus before.

    A gradient or an update of zeros points nowhere: its cosine is 0.
    """
    lengths = np.linalg.norm(gradients, axis=1) * np.linalg.norm(update)
    return np.divide(-(gradients @ update), lengths, out=np.zeros(len(gradients)), where=lengths > 0)


def score_batches(gradients: Array, member: Array, size: int, rng: np.random.Generator) -> Array:
    """Return (n,) cosines of each image's descent with that of a batch of members: a member's own, any for the others.

    Args:
        gradients: (n, d) of each image's loss.
        member: (n,) bool.
        size: of a batch; a few may be larger where it does not divide the members.
        rng: draws the batches, and whose the others are held against.
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
    """Return ascending indices of members and of others, equally many of every class.

    A K-shot sample has other class frequencies than the images left over. Without this, a score that merely knows the
    class would look like one that knows the members.

    Args:
        members: (m,) class indices.
        others: (o,) class indices.
        rng: draws which of them.
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
        groups: (n,) patients; an interval needs `MIN_GROUPS`.
        rng: of the resamples.

    Returns:
        0.5 is guessing, 1 tells them all apart; NaN if either kind is missing.
    """
    columns = scores.reshape(len(scores), -1)
    ranks = class_ranks(Sample.of(np.broadcast_to(member[:, None], columns.shape), columns, "multi_label"))
    # A resample's images are the same for every score, so what the scores share does not average out.
    value, draws = measure(ranks, len(scores))[0].mean(), resample(ranks, groups, rng)[:, 0].mean(axis=1)
    return summarise(float(value), draws, len(set(groups)))
