"""Membership inference from class means: on normal features it separates as its formula says, and not by chance."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score, roc_curve

from ept_fed.privacy.attacks.class_means import PublicFeatures, score_members
from ept_fed.privacy.attacks.membership import measure_detection
from tests.effort import examples

WIDTH, CLASSES = 64, 3


def draw(rng: np.random.Generator, images: int, root: np.ndarray, means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels = rng.integers(0, len(means), images)
    return means[labels] + rng.normal(size=(images, WIDTH)) @ root, labels


def attack(members: int, seed: int) -> tuple[float, float]:
    """Return the AUC over many released means of one class, and that with membership drawn at random."""
    rng = np.random.default_rng(seed)
    root, means = rng.normal(size=(WIDTH, WIDTH)), 3 * rng.normal(size=(CLASSES, WIDTH))
    features, labels = draw(rng, 4000, root, means)
    public = PublicFeatures.of(features, labels, np.zeros(len(labels), int), classes=CLASSES)
    scores, member = [], []
    for _ in range(200):
        inside, others = (means[0] + rng.normal(size=(count, WIDTH)) @ root for count in (members, members))
        both, centre = np.concatenate([inside, others]), np.tile(public.means[0, 0], (2 * members, 1))
        mean = np.tile(inside.mean(axis=0), (2 * members, 1))
        scores.append(score_members(both, centre, mean, centre, np.full(2 * members, members), public.precision))
        member.append(np.arange(2 * members) < members)
    score, truth = np.concatenate(scores), np.concatenate(member)
    return roc_auc_score(truth, score), roc_auc_score(rng.permutation(truth), score)


@pytest.mark.parametrize("members", [4, 20, 60])
def test_members_separate_as_the_root_of_dimensions_by_members(members: int) -> None:
    found, at_random = attack(members, members)
    # The two scores differ by D / n in the mean, and have a variance of D / n.
    assert found == pytest.approx(norm.cdf(math.sqrt(WIDTH / members) / math.sqrt(2)), abs=0.04)
    assert at_random == pytest.approx(0.5, abs=0.05)


def test_a_site_with_few_public_images_is_taken_for_one_near_the_others() -> None:
    rng = np.random.default_rng(0)
    features, labels = draw(rng, 600, np.eye(WIDTH), np.zeros((CLASSES, WIDTH)))
    sites = np.where(np.arange(600) < 2, 1, 0)
    labels[:2] = 0
    public = PublicFeatures.of(features, labels, sites, classes=CLASSES)
    whole = features[labels == 0].mean(axis=0)
    np.testing.assert_allclose(public.means[1, 0], (features[:2].sum(axis=0) + 20 * whole) / 22)
    np.testing.assert_allclose(public.means[1, 1], features[labels == 1].mean(axis=0))


def test_a_class_without_public_images_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[2\] have no public image"):
        PublicFeatures.of(np.zeros((4, 2)), np.array([0, 1, 0, 1]), np.zeros(4, int), classes=3)


@examples(100)
@given(
    scores=st.lists(st.integers(0, 9), min_size=2, max_size=60).map(lambda values: np.array(values, float)),
    seed=st.integers(0, 99),
    rate=st.sampled_from([0.0, 0.01, 0.1, 0.5]),
)
def test_detection_is_the_best_that_a_threshold_reaches_within_the_rate(
    scores: np.ndarray, seed: int, rate: float
) -> None:
    member = np.random.default_rng(seed).random(len(scores)) < 0.5
    if member.all() or not member.any():
        assert math.isnan(measure_detection(scores, np.zeros(len(scores), bool), rate))
        return
    false, true, _ = roc_curve(member, scores, drop_intermediate=False)
    assert measure_detection(scores, member, rate) == pytest.approx(true[false <= rate].max())
