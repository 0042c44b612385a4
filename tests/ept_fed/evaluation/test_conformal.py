import math

import numpy as np
import pytest

from ept_fed.evaluation.conformal import assess_sets, class_thresholds, prediction_sets
from ept_fed.evaluation.metrics import Array


def draw_images(rng: np.random.Generator, n: int, mix: list[float]) -> tuple[Array, Array]:
    labels = rng.choice(len(mix), n, p=mix)
    logits = rng.normal(size=(n, len(mix))) + 1.5 * (np.arange(len(mix)) == labels[:, None])
    return labels, np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def test_every_class_has_its_nominal_coverage_when_the_class_mix_differs() -> None:
    rng, coverages = np.random.default_rng(0), []
    for _ in range(100):
        validation, test = draw_images(rng, 90, [1 / 3] * 3), draw_images(rng, 400, [0.8, 0.15, 0.05])
        thresholds = class_thresholds(*validation, alpha=0.1)
        result = assess_sets(test[0], prediction_sets(test[1], thresholds), thresholds)
        coverages.append([result.coverage, *result.class_coverage])
    means = np.nanmean(coverages, axis=0)
    assert (means >= 0.895).all()
    assert (means <= 0.96).all()


@pytest.mark.parametrize(("images", "finite"), [(8, False), (9, True)])
def test_a_threshold_needs_one_image_less_than_one_over_alpha(images: int, finite: bool) -> None:
    scores = np.full((images, 2), 0.5)
    thresholds = class_thresholds(np.zeros(images, int), scores, alpha=0.1)
    assert math.isfinite(thresholds[0]) == finite
    assert math.isinf(thresholds[1])


def test_a_class_without_threshold_is_in_every_set_and_named() -> None:
    thresholds = np.array([0.0, np.inf])
    sets = prediction_sets(np.array([[0.9, 0.1], [1.0, 0.0]]), thresholds)
    assert sets.tolist() == [[False, True], [True, True]]
    result = assess_sets(np.array([0, 0]), sets, thresholds)
    assert result.unlimited == (1,)
    assert result.coverage == 0.5
    assert result.single == 0.5
    assert math.isnan(result.class_coverage[1])


def test_the_threshold_has_the_corrected_rank() -> None:
    scores = np.linspace(0.1, 1, 19)[:, None]
    (threshold,) = class_thresholds(np.zeros(19, int), scores, alpha=0.1)
    assert threshold == pytest.approx(1 - scores[::-1][17, 0])


def test_without_test_images_the_result_is_undefined() -> None:
    result = assess_sets(np.zeros(0, int), np.zeros((0, 2), bool), np.zeros(2))
    assert math.isnan(result.coverage)
    assert math.isnan(result.mean_size)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, float("nan")])
def test_an_impossible_rate_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        class_thresholds(np.zeros(3, int), np.ones((3, 1)), alpha)
