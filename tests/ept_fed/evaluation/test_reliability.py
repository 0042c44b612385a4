import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ept_fed.evaluation.calibration import brier_score, calibration_error, reliability_curve
from tests.effort import examples


@examples(12)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 80), task=st.sampled_from(["single_label", "multi_label"]))
def test_every_prediction_is_in_one_bin_for_any_order_of_rows(seed: int, n: int, task: str) -> None:
    rng = np.random.default_rng(seed)
    scores = np.round(rng.dirichlet(np.ones(3), n), 1)
    labels = rng.integers(0, 3, n) if task == "single_label" else rng.integers(0, 2, (n, 3))
    curve = reliability_curve(labels, scores, task)
    assert sum(part.count for part in curve) == (n if task == "single_label" else 3 * n)
    assert 1 <= len(curve) <= 15
    assert [part.confidence for part in curve] == sorted(part.confidence for part in curve)
    order = rng.permutation(n)
    shuffled = reliability_curve(labels[order], scores[order], task)
    assert calibration_error(shuffled) == pytest.approx(calibration_error(curve))
    assert 0 <= calibration_error(curve) <= 1


def test_distinct_confidences_fill_the_bins_equally() -> None:
    top = np.linspace(0.5, 1, 150)
    curve = reliability_curve(np.zeros(150, int), np.stack([top, 1 - top], axis=1), "single_label")
    assert [part.count for part in curve] == [10] * 15


def test_the_error_is_the_gap_between_confidence_and_accuracy() -> None:
    labels = np.array([0, 0, 0, 1] * 5)
    scores = np.tile([0.9, 0.1], (20, 1))
    assert calibration_error(reliability_curve(labels, scores, "single_label")) == pytest.approx(0.15)


def test_calibrated_probabilities_have_almost_no_error() -> None:
    rng = np.random.default_rng(0)
    p = rng.random((20_000, 1))
    hot = (rng.random(p.shape) < p).astype(int)
    assert calibration_error(reliability_curve(hot, p, "multi_label")) < 0.015


def test_without_images_the_errors_are_undefined() -> None:
    empty = np.zeros(0, int), np.zeros((0, 3))
    assert reliability_curve(*empty, "single_label") == ()
    assert math.isnan(calibration_error(()))
    assert math.isnan(brier_score(*empty, "single_label"))
