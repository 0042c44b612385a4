"""Metrics pooled from histograms differ from the exact ones by at most their stated bounds."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from ept_fed.evaluation.histograms import (
    CALIBRATION_BINS,
    LEAST_COUNT,
    Bounded,
    SharedHistograms,
    count_scores,
    pool_auc,
    pool_calibration_error,
)
from tests.effort import examples

Part = tuple[np.ndarray, np.ndarray]


def draw_site(seed: int, n: int, C: int, sharpness: float, task: str) -> Part:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, C, n)
    logits = sharpness * (rng.normal(size=(n, C)) + np.eye(C)[labels])
    logits = np.round(logits, int(rng.integers(0, 3)))  # ties
    if task == "multi_label":
        return (rng.random((n, C)) < 0.3).astype(int), 1 / (1 + np.exp(-logits))
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return labels, powers / powers.sum(1, keepdims=True)


def exact_calibration_error(labels: np.ndarray, scores: np.ndarray, task: str) -> float:
    if task == "multi_label":
        confidence, right = scores.ravel(), labels.astype(bool).ravel()
    else:
        confidence, right = scores.max(1), scores.argmax(1) == labels
    edges = np.arange(CALIBRATION_BINS + 1) / CALIBRATION_BINS
    places = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, CALIBRATION_BINS - 1)
    gaps = [abs(right[places == b].sum() - confidence[places == b].sum()) for b in range(CALIBRATION_BINS)]
    return float(sum(gaps) / len(confidence))


sites_drawn = st.lists(st.integers(LEAST_COUNT, 80), min_size=1, max_size=5)


@examples(15)
@given(
    sizes=sites_drawn,
    C=st.integers(2, 5),
    sharpness=st.floats(0.1, 8),
    seed=st.integers(0, 2**16),
    task=st.sampled_from(["single_label", "multi_label"]),
)
def test_pooled_metrics_are_within_their_bounds(
    sizes: list[int], C: int, sharpness: float, seed: int, task: str
) -> None:
    parts = [draw_site(seed + place, n, C, sharpness, task) for place, n in enumerate(sizes)]
    shared = [count_scores(labels, scores, task) for labels, scores in parts]
    labels, scores = np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
    hot = labels.astype(bool) if task == "multi_label" else np.arange(C)[None, :] == labels[:, None]
    for c in range(C):
        pooled = pool_auc(shared, c)
        if hot[:, c].any() and not hot[:, c].all():
            assert pooled.low - 1e-12 <= roc_auc_score(hot[:, c], scores[:, c]) <= pooled.high + 1e-12
        else:
            assert np.isnan(pooled.value)
    error = pool_calibration_error(shared)
    if not any(site.confidence for site in shared):
        assert np.isnan(error.value)
        return
    assert error.low - 1e-12 <= exact_calibration_error(labels, scores, task) <= error.high + 1e-12


@examples(10)
@given(n=st.integers(0, 200), sharpness=st.floats(0.1, 8), seed=st.integers(0, 2**16), least=st.integers(1, 20))
def test_no_bin_is_smaller_than_the_least_count_and_nothing_is_counted_twice(
    n: int, sharpness: float, seed: int, least: int
) -> None:
    labels, scores = draw_site(seed, n, 3, sharpness, "single_label")
    shared = count_scores(labels, scores, "single_label", least)
    for c, bins in enumerate(shared.classes):
        assert sum(part.images for part in bins) == (n if n >= least else 0)
        assert sum(part.hits for part in bins) == (int((labels == c).sum()) if n >= least else 0)
        assert all(part.images >= least and 0 <= part.hits <= part.images for part in bins)
        assert all(a.stop <= b.start for a, b in itertools.pairwise(bins))
    assert all(part.images >= least for part in shared.confidence)
    assert shared.withheld == n - sum(part.images for part in shared.confidence)


def test_the_bound_is_narrow_on_a_few_thousand_images() -> None:
    shared = [count_scores(*draw_site(seed, 1000, 7, 2.0, "single_label"), "single_label") for seed in range(4)]
    for c in range(7):
        pooled = pool_auc(shared, c)
        assert pooled.high - pooled.low < 0.03
    error = pool_calibration_error(shared)
    assert error.high - error.low < 0.02


def test_perfect_and_empty_histograms() -> None:
    labels = np.arange(40) % 2
    perfect = count_scores(labels, np.eye(2)[labels] * 0.9 + 0.05, "single_label")
    assert pool_auc([perfect], 0) == Bounded(1.0, 1.0, 1.0)
    nothing = SharedHistograms(((), ()), (), 3)
    assert np.isnan(pool_auc([nothing], 0).value)
    assert np.isnan(pool_calibration_error([nothing]).value)
    assert pool_auc([nothing, perfect], 0) == pool_auc([perfect], 0)
