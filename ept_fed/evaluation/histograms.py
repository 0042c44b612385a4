"""Score histograms that sites can add up: pooled AUC and calibration error from counts, with exact bounds.

A site shares, per class, how many of its images fall into each score bin, and how many of those have the class. No
score of an image leaves, and no bin with fewer than `LEAST_COUNT` images: neighbours are merged until it has as many.
From the bins' edges alone follows, for every pair of an image with and one without the class, whether the first surely
scores higher, surely lower, or may do either. That bounds the pooled AUC; whatever the true order inside the bins, it
lies between the bounds.

What this does not protect: a bin of `LEAST_COUNT` images may hold a single one with the class, and several images may
be one patient's. A site for which that is too much shares nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ept_fed.evaluation.metrics import Array
from ept_fed.evaluation.weighted import Sample

__all__ = [
    "CALIBRATION_BINS",
    "CONFIDENCE_EDGES",
    "LEAST_COUNT",
    "SCORE_EDGES",
    "Bin",
    "Bounded",
    "SharedHistograms",
    "count_scores",
    "pool_auc",
    "pool_calibration_error",
]

LEAST_COUNT = 5
"""No bin is shared with fewer images: the threshold below which health statistics usually withhold a count."""

CALIBRATION_BINS = 15

# 200 bins, even in the logit from -10 to 10, the outermost reaching to 0 and 1: with many classes most probabilities
# lie near 0, where bins of even width would hold half of all images and leave the AUC open.
SCORE_EDGES: Array = np.concatenate([[0.0], 1.0 / (1.0 + np.exp(-np.linspace(-9.9, 9.9, 199))), [1.0]])
# 20 bins within each of the calibration error's 15.
CONFIDENCE_EDGES: Array = np.arange(CALIBRATION_BINS * 20 + 1) / (CALIBRATION_BINS * 20)


@dataclass(frozen=True)
class Bin:
    """Images whose score lies in [edges[start], edges[stop]), the last edge included.

    Attributes:
        start: index of the lower edge.
        stop: index of the upper edge.
        images: how many.
        hits: how many of them have the class (for calibration: were right).
    """

    start: int
    stop: int
    images: int
    hits: int


@dataclass(frozen=True)
class SharedHistograms:
    """What one site shares about one setting: counts, and nothing else.

    Attributes:
        classes: for each class, bins over `SCORE_EDGES`; none at all if the site has fewer than `LEAST_COUNT` images.
        confidence: bins over `CONFIDENCE_EDGES`, none across two of the 15 calibration bins: single_label counts each
            image by the probability of its top class, multi_label each image and class.
        withheld: images (multi_label: images times classes) in no confidence bin, because theirs would be too small.
    """

    classes: tuple[tuple[Bin, ...], ...]
    confidence: tuple[Bin, ...]
    withheld: int


@dataclass(frozen=True)
class Bounded:
    """A number known up to the bins: it lies in [low, high]; `value` is the middle. NaN where undefined."""

    value: float
    low: float
    high: float


def count_scores(labels: Array, scores: Array, task: str, least: int = LEAST_COUNT) -> SharedHistograms:
    """Count a site's test images into bins of at least `least` images.

    Args:
        labels: (n,) class indices, or (n, C) in {0, 1} for multi-label.
        scores: (n, C) probabilities in [0, 1].
        task: single_label or multi_label.
        least: minimum count of a bin.
    """
    sample = Sample.of(labels, scores, task)
    n, C = sample.scores.shape
    classes = []
    for c in range(C):
        images, hits = _count(sample.scores[:, c], sample.hot[:, c], SCORE_EDGES)
        classes.append(_merge(images, hits, 0, len(images), least))
    if task == "multi_label":
        confidence, right = sample.scores.ravel(), sample.hot.ravel()
    else:
        top = sample.scores.argmax(axis=1)
        confidence, right = sample.scores.max(axis=1), sample.hot[np.arange(n), top]
    images, hits = _count(confidence, right, CONFIDENCE_EDGES)
    width = len(images) // CALIBRATION_BINS
    parts = [_merge(images, hits, k * width, (k + 1) * width, least) for k in range(CALIBRATION_BINS)]
    bins = tuple(part for merged in parts for part in merged)
    return SharedHistograms(tuple(classes), bins, len(confidence) - sum(part.images for part in bins))


def pool_auc(sites: Sequence[SharedHistograms], c: int) -> Bounded:
    """Return bounds of the AUC of class c against the rest over all images in the sites' bins together.

    Every pair of an image with and one without the class counts 1 if the bins say that the first scores higher, 0 if
    lower; where the bins overlap, it may count anything between: 0 for `low`, 1 for `high`.
    """
    bins = [part for site in sites for part in site.classes[c]]
    edges = len(SCORE_EDGES)
    ending, starting = np.zeros(edges, dtype=np.int64), np.zeros(edges, dtype=np.int64)
    for part in bins:
        ending[part.stop] += part.images - part.hits
        starting[part.start] += part.images - part.hits
    below, above = ending.cumsum(), starting[::-1].cumsum()[::-1]
    positives, negatives = sum(part.hits for part in bins), int(ending.sum())
    if not positives or not negatives:
        return Bounded(math.nan, math.nan, math.nan)
    pairs = positives * negatives
    low = sum(part.hits * int(below[part.start]) for part in bins) / pairs
    high = 1 - sum(part.hits * int(above[part.stop]) for part in bins) / pairs
    return Bounded((low + high) / 2, low, high)


def pool_calibration_error(sites: Sequence[SharedHistograms]) -> Bounded:
    """Return bounds of the expected calibration error over all sites' images, in 15 bins of even width.

    ECE = sum over bins of |right - sum of confidences| / n (Guo et al. 2017). The sum of confidences lies between the
    bins' edges times their counts; an image withheld may move its bin's difference by up to one. (The sites' own pages
    use bins of equal mass, which cannot be pooled.)
    """
    lows, highs, right = (np.zeros(CALIBRATION_BINS) for _ in range(3))
    counted = 0
    width = (len(CONFIDENCE_EDGES) - 1) // CALIBRATION_BINS
    for site in sites:
        for part in site.confidence:
            place = part.start // width
            lows[place] += part.images * CONFIDENCE_EDGES[part.start]
            highs[place] += part.images * CONFIDENCE_EDGES[part.stop]
            right[place] += part.hits
            counted += part.images
    withheld = sum(site.withheld for site in sites)
    if not counted:
        return Bounded(math.nan, math.nan, math.nan)
    nearest = np.maximum(0.0, np.maximum(lows - right, right - highs)).sum()
    farthest = np.maximum(np.abs(lows - right), np.abs(right - highs)).sum()
    n = counted + withheld
    low, high = max(0.0, (nearest - withheld) / n), min(1.0, (farthest + withheld) / n)
    return Bounded(float((low + high) / 2), float(low), float(high))


def _count(scores: Array, hits: Array, edges: Array) -> tuple[Array, Array]:
    """Return images and hits per bin, each (len(edges) - 1,)."""
    places = np.clip(np.searchsorted(edges, scores, side="right") - 1, 0, len(edges) - 2)
    images = np.bincount(places, minlength=len(edges) - 1)
    return images, np.bincount(places[hits.astype(bool)], minlength=len(edges) - 1)


def _merge(images: Array, hits: Array, first: int, last: int, least: int) -> tuple[Bin, ...]:
    """Return bins `first` to `last` - 1 merged from the left until each holds `least`; a rest joins its neighbour.

    Empty bins at the edges of a merged one are left out of it, so that it is no wider than its images. Fewer than
    `least` images in all give no bin.
    """
    merged: list[Bin] = []
    start, held, hit = -1, 0, 0
    for place in range(first, last):
        if not images[place]:
            continue
        start = place if start < 0 else start
        held, hit = held + int(images[place]), hit + int(hits[place])
        if held >= least:
            merged.append(Bin(start, place + 1, held, hit))
            start, held, hit = -1, 0, 0
    if held and merged:
        stop = 1 + max(place for place in range(first, last) if images[place])
        rest = merged.pop()
        merged.append(Bin(rest.start, stop, rest.images + held, rest.hits + hit))
    return tuple(merged)
