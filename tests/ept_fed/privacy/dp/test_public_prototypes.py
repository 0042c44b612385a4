"""Prototypes are the public images that private ones resemble, and one private image changes the odds by at most ε."""

import numpy as np
import pytest

from ept_fed.privacy.dp.public_prototypes import choose_prototypes


def test_without_noise_the_most_alike_public_images_are_chosen() -> None:
    rng = np.random.default_rng(0)
    public = rng.normal(size=(50, 6))
    private = np.concatenate([public[[3]] * 2 + 0.01, public[[7]] * 5 - 0.01])
    chosen = choose_prototypes(
        public, private, np.array([0, 1]), classes=2, draws=1, epsilon=np.inf, rng=np.random.default_rng(0)
    )
    assert chosen.ravel().tolist() == [3, 7]


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_one_private_image_changes_the_odds_of_a_choice_by_at_most_epsilon(epsilon: float) -> None:
    public = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    private = np.array([[1.0, 0.1], [0.5, 1.0], [1.0, 0.0]])
    counts = []
    for chosen in (private, private[:-1]):
        rng = np.random.default_rng(1)
        labels = np.zeros(len(chosen), dtype=np.int64)
        drawn = [
            choose_prototypes(public, chosen, labels, classes=1, draws=1, epsilon=epsilon, rng=rng)[0, 0]
            for _ in range(6000)
        ]
        counts.append(np.bincount(drawn, minlength=3) / 6000)
    odds = np.abs(np.log(counts[0] / counts[1]))
    assert odds.max() < epsilon + 0.15
    # The left-out image is public image 0 itself, so the bound is not loose by much.
    assert odds.max() > epsilon / 5


def test_more_draws_than_public_images_are_refused() -> None:
    with pytest.raises(ValueError, match="public images"):
        choose_prototypes(
            np.eye(2), np.eye(2), np.array([0, 1]), classes=2, draws=3, epsilon=1.0, rng=np.random.default_rng(0)
        )
