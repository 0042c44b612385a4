"""One image moves a release by at most the sensitivity, and the head is that of the means."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ept_fed.privacy.dp.noised_sums import PublicSpace, release_sums

CLASSES, WIDTH = 3, 8


def public(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(600) % CLASSES
    return rng.normal(size=(600, WIDTH)) @ rng.normal(size=(WIDTH, WIDTH)) + 20 * np.eye(WIDTH)[labels], labels


SPACE = PublicSpace.of(*public(), dimensions=4)
features = arrays(np.float64, (6, WIDTH), elements=st.floats(-1e6, 1e6))


@given(x=features, labels=arrays(np.int64, 6, elements=st.integers(0, CLASSES - 1)), left_out=st.integers(0, 5))
def test_one_image_moves_the_release_by_at_most_the_sensitivity(
    x: np.ndarray, labels: np.ndarray, left_out: int
) -> None:
    kept = np.arange(6) != left_out

    def exact(chosen: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng(0)
        released = release_sums(SPACE, x[chosen], labels[chosen], classes=CLASSES, noise_multiplier=0.0, rng=rng)
        return np.concatenate([released.sums.ravel(), SPACE.radius / 4 * released.counts])

    moved = np.linalg.norm(exact(np.ones(6, dtype=bool)) - exact(kept))
    assert moved <= SPACE.sensitivity * (1 + 1e-6)


def test_the_noise_has_the_stated_deviations() -> None:
    x, labels = public(1)
    rng = np.random.default_rng(0)
    exact = release_sums(SPACE, x, labels, classes=CLASSES, noise_multiplier=0.0, rng=rng)
    many = [release_sums(SPACE, x, labels, classes=CLASSES, noise_multiplier=2.0, rng=rng) for _ in range(800)]
    sums = np.stack([one.sums - exact.sums for one in many])
    counts = np.stack([one.counts - exact.counts for one in many])
    assert np.std(sums) == pytest.approx(many[0].deviation, rel=0.03)
    assert np.std(counts) == pytest.approx(many[0].count_deviation, rel=0.05)
    # In units of what an image may move, each part has at least the multiplier.
    assert many[0].deviation == pytest.approx(2.0 * SPACE.sensitivity)
    assert many[0].count_deviation * SPACE.radius / 4 == pytest.approx(many[0].deviation)


def test_the_space_has_covariance_one_within_classes_of_public_images() -> None:
    x, labels = public()
    moved = SPACE.move(x)
    centred = moved - np.stack([moved[labels == label].mean(0) for label in range(CLASSES)])[labels]
    assert np.allclose(centred.T @ centred / len(x), np.eye(4), atol=0.3)
    assert np.linalg.norm(SPACE.cut(1e6 * x), axis=1) == pytest.approx(SPACE.radius)


def test_the_head_finds_the_class_and_never_one_without_images() -> None:
    x, labels = public(2)
    chosen = labels != 2
    released = release_sums(
        SPACE, x[chosen], labels[chosen], classes=CLASSES, noise_multiplier=0.0, rng=np.random.default_rng(0)
    )
    weight, bias = released.head()
    logits = SPACE.move(x[chosen]) @ weight.T + bias
    assert np.mean(logits.argmax(1) == labels[chosen]) > 0.9
    assert bias[2] == -np.inf


@pytest.mark.parametrize("dimensions", [0, WIDTH + 1])
def test_a_space_of_impossible_dimensions_is_refused(dimensions: int) -> None:
    with pytest.raises(ValueError, match="public images"):
        PublicSpace.of(*public(), dimensions=dimensions)
