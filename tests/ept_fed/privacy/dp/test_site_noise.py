"""Noise on whole updates: a site's influence on the sum, the privacy cost, and the adaptive clip."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from ept_fed.privacy.dp.accountant import GaussianSteps, spent_epsilon
from ept_fed.privacy.dp.site_noise import (
    adapt_clip,
    add_noise,
    clip_update,
    cost_of_round,
    find_site_noise,
    split_noise,
)

VECTORS = arrays(np.float32, 6, elements=st.floats(-1e6, 1e6, width=32))
CLIPS = st.floats(1e-3, 1e3)


@given(VECTORS, VECTORS, CLIPS)
def test_an_update_is_scaled_down_to_the_clip_and_keeps_its_direction(
    received: np.ndarray, trained: np.ndarray, clip: float
) -> None:
    update = trained.astype(np.float64) - received
    clipped, length = clip_update(received, trained, clip)
    assert length == pytest.approx(np.linalg.norm(update))
    assert np.linalg.norm(clipped) <= clip * (1 + 1e-12)
    np.testing.assert_allclose(clipped * max(1.0, length / clip), update, rtol=1e-9, atol=1e-9)


@given(VECTORS, VECTORS, VECTORS, CLIPS)
def test_other_images_change_the_sum_by_at_most_twice_the_clip(
    received: np.ndarray, trained: np.ndarray, otherwise: np.ndarray, clip: float
) -> None:
    one, other = (clip_update(received, end, clip)[0] for end in (trained, otherwise))
    assert np.linalg.norm(one - other) <= 2 * clip * (1 + 1e-12)


def test_a_zero_update_stays_zero_until_noise_is_added() -> None:
    payload = np.ones(4, np.float32)
    clipped, length = clip_update(payload, payload, 0.5)
    assert length == 0.0
    assert not clipped.any()
    assert add_noise(clipped, 1.0).all()


@pytest.mark.parametrize("wild", [math.nan, math.inf])
def test_numbers_that_cannot_be_clipped_are_refused(wild: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        clip_update(np.zeros(3, np.float32), np.array([0, wild, 0], np.float32), 1.0)


def test_the_noise_has_the_stated_variance() -> None:
    noise = add_noise(np.full(200_000, 3.0), 0.7) - 3.0
    assert abs(noise.mean()) < 6 * 0.7 / math.sqrt(len(noise))
    assert noise.var() == pytest.approx(0.49, rel=6 * math.sqrt(2 / len(noise)))
    assert stats.kstest(noise / 0.7, "norm").pvalue > 1e-6


@pytest.mark.parametrize("noise", [2.0, 8.0, 40.0])
@pytest.mark.parametrize("rounds", [1, 8, 100])
def test_the_stated_epsilon_holds_by_the_exact_formula_and_is_not_far_above_it(noise: float, rounds: int) -> None:
    """Balle and Wang 2018, Theorem 8; rounds of Gaussian noise compose to one with μ = √rounds · 2C / σC."""
    stated = spent_epsilon([cost_of_round(noise)] * rounds, 1e-5)
    mu = 2.0 * math.sqrt(rounds) / noise

    def delta(epsilon: float) -> float:
        return float(stats.norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * stats.norm.cdf(-mu / 2 - epsilon / mu))

    assert delta(stated) <= 1e-5
    assert delta(0.8 * stated) > 1e-5


@given(st.floats(0.5, 50.0), st.integers(1, 60))
def test_the_noise_for_an_epsilon_meets_it_closely(epsilon: float, rounds: int) -> None:
    noise = find_site_noise(None, epsilon, 1e-5, rounds=rounds)
    assert 0.97 * epsilon < spent_epsilon([cost_of_round(noise)] * rounds, 1e-5) <= epsilon
    assert find_site_noise(3.0, None, 1e-5, rounds=rounds) == 3.0
    with pytest.raises(ValueError, match="epsilon"):
        find_site_noise(None, None, 1e-5, rounds=rounds)


@given(st.floats(0.3, 30.0), st.floats(0.51, 50.0))
def test_noise_on_updates_and_on_their_count_together_have_the_requested_cost(noise: float, share: float) -> None:
    update_noise, count_noise = split_noise(noise, share * noise)
    separate = [GaussianSteps(update_noise, 1.0, 1), GaussianSteps(2.0 * count_noise, 1.0, 1)]
    assert spent_epsilon(separate, 1e-5) == pytest.approx(spent_epsilon([GaussianSteps(noise, 1.0, 1)], 1e-5), rel=1e-6)


def test_a_count_that_costs_more_than_the_total_is_refused() -> None:
    with pytest.raises(ValueError, match="count_noise"):
        split_noise(1.0, 0.5)
    assert split_noise(1.0, None)[0] == pytest.approx(1.033, abs=1e-3)


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("start", [0.01, 50.0])
def test_an_adaptive_clip_finds_the_quantile_from_far_below_and_above(quantile: float, start: float) -> None:
    lengths, clip = np.random.default_rng(0).lognormal(0.0, 0.5, 200), start
    for _ in range(400):
        clip = adapt_clip(clip, short=float((lengths <= clip).sum()), sites=200, quantile=quantile, rate=0.2)
    assert clip == pytest.approx(np.quantile(lengths, quantile), rel=0.05)


@given(st.floats(-1e3, 1e3), st.integers(1, 50))
def test_no_noise_on_the_count_moves_the_clip_further_than_its_rate(short: float, sites: int) -> None:
    moved = adapt_clip(1.0, short=short, sites=sites, quantile=0.5, rate=0.2)
    assert math.exp(-0.1) - 1e-9 <= moved <= math.exp(0.1) + 1e-9
