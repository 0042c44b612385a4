import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import auc, confusion_matrix, roc_auc_score

from ept_fed.evaluation import operating_point
from ept_fed.evaluation.operating_point import choose_threshold, roc_points
from tests.effort import examples


@examples(20)
@given(
    scores=st.lists(st.sampled_from(np.linspace(0, 1, 11).tolist()), min_size=1, max_size=40),
    seed=st.integers(0, 1000),
    target=st.floats(0.01, 1),
)
def test_the_threshold_is_the_highest_that_reaches_the_target(scores: list[float], seed: int, target: float) -> None:
    values = np.array(scores)
    truth = np.random.default_rng(seed).random(len(values)) < 0.5
    threshold = choose_threshold(truth, values, target)
    if not truth.any():
        assert math.isnan(threshold)
        return
    assert (values[truth] >= threshold).mean() >= target - 1e-9
    assert (values[truth] > threshold).mean() < target


@examples(15)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 150), ties=st.booleans())
def test_the_curve_has_the_stated_area_and_never_falls(seed: int, n: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    truth, scores = rng.random(n) < 0.3, rng.random(n)
    scores = np.round(scores, 1) if ties else scores
    points = np.array(roc_points(truth, scores))
    if not truth.any() or truth.all():
        assert len(points) == 0
        return
    assert points[0].tolist() == [0, 0]
    assert points[-1].tolist() == [1, 1]
    assert (np.diff(points, axis=0) >= 0).all()
    assert auc(points[:, 0], points[:, 1]) == pytest.approx(roc_auc_score(truth, scores), abs=1e-9)


def test_a_long_curve_is_thinned_and_stays_close() -> None:
    rng = np.random.default_rng(0)
    truth, scores = rng.random(20_000) < 0.5, rng.random(20_000)
    points = np.array(roc_points(truth, scores))
    assert len(points) <= 200
    assert auc(points[:, 0], points[:, 1]) == pytest.approx(roc_auc_score(truth, scores), abs=2e-3)


def test_the_confusion_matrix_equals_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 3, 50), rng.integers(0, 4, 50)
    expected = confusion_matrix(labels, predicted, labels=range(5))
    assert np.array_equal(operating_point.confusion_matrix(labels, predicted, 5), expected)


@pytest.mark.parametrize("target", [0.0, 1.1, float("nan")])
def test_an_impossible_sensitivity_is_refused(target: float) -> None:
    with pytest.raises(ValueError, match="sensitivity"):
        choose_threshold(np.ones(2, bool), np.ones(2), target)
