"""Score histograms that can be added over sites: pooled AUC and calibration error from counts, with exact bounds.

A site shares, per class, the number of its images in each score bin, and how many of them have the class. No score of
a single image leaves the site, and no bin with fewer than `LEAST_COUNT` images. Smaller bins are merged with their
neighbours. For every pair of an image with the class and an image without it, the bin edges show whether the first
score is higher, lower, or may be either. This bounds the pooled AUC for every possible order inside the bins.

Limits of this protection: a bin of `LEAST_COUNT` images may contain only one image with the class, and several images
may be of the same patient. A site that does not accept this shares nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ept_fed.evaluation.metrics import Array
from ept_fed.evaluation.weighted_metrics import Sample

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
"""Minimum number of images in a shared bin; health statistics usually withhold counts below this threshold."""

CALIBRATION_BINS = 15

# 200 bins of equal width in the logit from -10 to 10; the outermost ones reach to 0 and 1. With many classes, most
# probabilities are near 0. Bins of equal width in probability would contain half of all images there, and the bounds of
# the AUC would be wide.
SCORE_EDGES: Array = np.concatenate([[0.0], 1.0 / (1.0 + np.exp(-np.linspace(-9.9, 9.9, 199))), [1.0]])
# 20 bins within each of the 15 bins of the calibration error.
CONFIDENCE_EDGES: Array = np.arange(CALIBRATION_BINS * 20 + 1) / (CALIBRATION_BINS * 20)


@dataclass(frozen=True)
class Bin:
    """The counts of images whose score is in [edges[start], edges[stop]); the last edge is included.

    Attributes:
        start: index of the lower edge.
        stop: index of the upper edge.
        images: number of images.
        hits: number of these images that have the class (for calibration: whose prediction is correct).
    """

    start: int
    stop: int
    images: int
    hits: int


@dataclass(frozen=True)
class SharedHistograms:
    """The counts that one site shares about one setting; it shares nothing else.

    Attributes:
        classes: for each class, bins over `SCORE_EDGES`; no bins if the site has fewer than `LEAST_COUNT` images.
        confidence: bins over `CONFIDENCE_EDGES`; none extends over two of the 15 calibration bins. single_label counts
            each image by the probability of its top class, multi_label counts each image and class.
        withheld: images (multi_label: images times classes) in no confidence bin, because the bin would be too small.
    """

    classes: tuple[tuple[Bin, ...], ...]
    confidence: tuple[Bin, ...]
    withheld: int


@dataclass(frozen=True)
class Bounded:
    """A number in [low, high], the bounds from the bins; `value` is their middle. All are NaN if it is undefined."""

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
    """Return bounds of the AUC of class c against the rest, over all images in the bins of all sites.

    A pair of an image with the class and an image without it counts 1 if the bin of the first image is higher, and 0 if
    it is lower. If the bins overlap, the pair may count any value between, so it counts 0 for `low` and 1 for `high`.
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
    """Return bounds of the expected calibration error over all sites' images, in 15 bins of equal width.

    ECE = sum over bins of |number of correct - sum of confidences| / n (Guo et al. 2017). The sum of confidences of a
    shared bin is between its count times its lower edge and its count times its upper edge. A withheld image may change
    the difference of its bin by up to one. (The reports of single sites use bins of equal mass, which cannot be
    combined over sites.)
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
    """Return the numbers of images and hits per bin, each (len(edges) - 1,)."""
    places = np.clip(np.searchsorted(edges, scores, side="right") - 1, 0, len(edges) - 2)
    images = np.bincount(places, minlength=len(edges) - 1)
    return images, np.bincount(places[hits.astype(bool)], minlength=len(edges) - 1)


def _merge(images: Array, hits: Array, first: int, last: int, least: int) -> tuple[Bin, ...]:
    """Return bins `first` to `last` - 1, merged from the left until each has at least `least` images.

    Images that remain at the right end join the last merged bin. A merged bin has no empty bins at its ends, so that it
    is as narrow as possible. Fewer than `least` images in total give no bin.
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
