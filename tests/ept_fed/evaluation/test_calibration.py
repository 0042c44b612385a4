import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ept_fed.evaluation.calibration import apply_temperature, fit_temperature
from ept_fed.evaluation.metrics import classification_metrics
from tests.effort import examples

LOGITS = np.random.default_rng(0).normal(0, 2, (4000, 3))
TRUE = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
LABELS = np.array([np.random.default_rng(i).choice(3, p=p) for i, p in enumerate(TRUE)])


@pytest.mark.parametrize("distortion", [0.3, 1.0, 2.5])
def test_a_known_distortion_is_found_and_undone(distortion: float) -> None:
    distorted = apply_temperature(TRUE, 1 / distortion, "single_label")
    assert fit_temperature(LABELS, distorted, "single_label") == pytest.approx(distortion, rel=0.08)


def test_multi_label_distortion_is_found() -> None:
    p = 1 / (1 + np.exp(-LOGITS))
    hot = (np.random.default_rng(1).random(p.shape) < p).astype(float)
    distorted = apply_temperature(p, 0.5, "multi_label")
    assert fit_temperature(hot, distorted, "multi_label") == pytest.approx(2.0, rel=0.08)


@examples(10)
@given(temperature=st.floats(0.05, 20), task=st.sampled_from(["single_label", "multi_label"]))
def test_a_temperature_changes_confidence_but_never_a_rank(temperature: float, task: str) -> None:
    calibrated = apply_temperature(TRUE[:50], temperature, task)
    assert np.array_equal(calibrated.argmax(1), TRUE[:50].argmax(1))
    assert np.isfinite(calibrated).all()
    if task == "single_label":
        np.testing.assert_allclose(calibrated.sum(1), 1)


@pytest.mark.parametrize("n", [1, 2, 10])
def test_a_handful_of_right_predictions_does_not_make_a_site_overconfident(n: int) -> None:
    labels = np.arange(n) % 3
    scores = np.full((n, 3), 0.2)
    scores[np.arange(n), labels] = 0.6
    assert 0.35 < fit_temperature(labels, scores, "single_label") < 1.0


def test_nan_scores_leave_the_temperature_at_one() -> None:
    assert fit_temperature(np.array([0]), np.full((1, 3), np.nan), "single_label") == 1.0


def test_fitting_does_not_worsen_the_likelihood() -> None:
    rng = np.random.default_rng(3)
    scores = rng.dirichlet([0.2] * 3, 300)
    labels = rng.integers(0, 3, 300)
    temperature = fit_temperature(labels, scores, "single_label")
    before = classification_metrics(labels, scores, "single_label")["loss"]
    after = classification_metrics(labels, apply_temperature(scores, temperature, "single_label"), "single_label")
    assert after["loss"] <= before + 1e-6


def test_without_images_the_temperature_is_one() -> None:
    assert fit_temperature(np.zeros(0, int), np.zeros((0, 3)), "single_label") == 1.0


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        apply_temperature(TRUE, temperature, "single_label")
