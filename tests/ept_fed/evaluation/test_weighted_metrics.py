"""Metrics computed for many resamples at once equal scikit-learn's metrics on the resampled rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, brier_score_loss, recall_score, roc_auc_score

from ept_fed.evaluation.bootstrap import measure
from ept_fed.evaluation.calibration import brier_score
from ept_fed.evaluation.metrics import Array, classification_metrics
from ept_fed.evaluation.weighted_metrics import Sample, class_averages, class_ranks, decisions, image_means, rates
from tests.effort import examples

TASKS = st.sampled_from(["single_label", "multi_label"])


def draw_case(seed: int, n: int, task: str, *, ties: bool = False) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    if task == "multi_label":
        labels, scores = rng.integers(0, 2, (n, 4)), rng.random((n, 4))
    else:
        labels, scores = rng.integers(0, 4, n), rng.dirichlet(np.ones(4), n)
    if ties:
        scores = np.round(scores, 1)
        if task == "single_label":
            scores = (scores + 1e-3) / (scores + 1e-3).sum(1, keepdims=True)
    return labels, scores


@examples(15)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 60), task=TASKS, ties=st.booleans())
def test_with_unit_weights_they_equal_the_ordinary_metrics(seed: int, n: int, task: str, ties: bool) -> None:
    labels, scores = draw_case(seed, n, task, ties=ties)
    sample, expected = Sample.of(labels, scores, task), classification_metrics(labels, scores, task)
    auc, precision = class_averages(measure(class_ranks(sample), n))
    accuracy, loss, brier = measure(image_means(sample), n)
    sensitivity, specificity = measure(rates(sample, decisions(sample)), n)
    balanced = class_averages((sensitivity + specificity) / 2 if task == "multi_label" else sensitivity)
    found = {"auc": auc, "average_precision": precision, "accuracy": accuracy, "loss": loss}
    for name, value in {**found, "balanced_accuracy": balanced}.items():
        np.testing.assert_allclose(value, expected[name], atol=1e-9, err_msg=name)
    np.testing.assert_allclose(brier, brier_score(labels, scores, task), atol=1e-12)


@examples(15)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 50), ties=st.booleans())
def test_a_resample_has_the_metrics_of_its_rows(seed: int, n: int, ties: bool) -> None:
    labels, scores = draw_case(seed, n, "single_label", ties=ties)
    rows = np.random.default_rng(seed + 1).integers(0, n, n)
    weights = np.bincount(rows, minlength=n).astype(float)[None]
    sample = Sample.of(labels, scores, "single_label")
    ranked, rated = class_ranks(sample)(weights)[0], rates(sample, decisions(sample))(weights)[0]
    for c in range(4):
        truth = labels[rows] == c
        if truth.any() and not truth.all():
            np.testing.assert_allclose(ranked[0, c], roc_auc_score(truth, scores[rows, c]), atol=1e-9)
        else:
            assert np.isnan(ranked[0, c])
        if truth.any():
            np.testing.assert_allclose(ranked[1, c], average_precision_score(truth, scores[rows, c]), atol=1e-9)
            np.testing.assert_allclose(rated[0, c], recall_score(truth, scores[rows].argmax(1) == c), atol=1e-9)
        else:
            assert np.isnan(ranked[1, c])
            assert np.isnan(rated[0, c])


def test_brier_equals_scikit_learns_for_two_classes() -> None:
    labels, scores = draw_case(0, 50, "single_label")
    two = scores[:, :2] / scores[:, :2].sum(1, keepdims=True)
    truth = (labels > 1).astype(int)
    assert brier_score(truth, two, "single_label") == pytest.approx(2 * brier_score_loss(truth, two[:, 1]))


def test_equal_scores_rank_at_one_half() -> None:
    sample = Sample.of(np.array([0, 0, 1]), np.full((3, 2), 0.5), "single_label")
    assert measure(class_ranks(sample), 3)[0].tolist() == [0.5, 0.5]


def test_an_average_includes_only_defined_values() -> None:
    assert class_averages(np.array([[1.0, np.nan, 0.5]])).tolist() == [0.75]
    assert np.isnan(class_averages(np.full((1, 3), np.nan))).all()


def test_labels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        Sample.of(np.zeros(3, int), np.ones((3, 2)), "multi_label")
