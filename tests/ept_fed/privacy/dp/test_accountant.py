"""The privacy cost of noise, against two published implementations and a closed form."""

import math

import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from hypothesis import given
from hypothesis import strategies as st
from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent
from scipy.stats import norm

from ept_fed.privacy.dp.accountant import GaussianSteps, find_noise_multiplier, spent_epsilon
from tests.effort import examples

WHOLE_ORDERS = [*range(2, 129), 160, 192, 256, 384, 512, 768, 1024]
MECHANISMS = [
    (0.8, 8 / 63, 64),
    (1.0, 8 / 63, 64),
    (1.1, 0.01, 10_000),
    (2.0, 0.5, 200),
    (5.0, 1.0, 100),
    (20.0, 8 / 63, 64),
]


@pytest.mark.parametrize(("noise", "rate", "steps"), MECHANISMS)
@pytest.mark.parametrize("delta", [1e-3, 1e-5])
def test_epsilon_equals_that_of_opacus(noise: float, rate: float, steps: int, delta: float) -> None:
    divergence = compute_rdp(q=rate, noise_multiplier=noise, steps=steps, orders=WHOLE_ORDERS)
    theirs, _ = get_privacy_spent(orders=WHOLE_ORDERS, rdp=divergence, delta=delta)
    assert spent_epsilon([GaussianSteps(noise, rate, steps)], delta) == pytest.approx(theirs, abs=1e-3)


def test_rounds_of_different_noise_compose_as_in_opacus() -> None:
    rounds = [(1.0, 0.1, 20), (2.0, 0.25, 5), (1.0, 0.1, 7), (4.0, 1.0, 3)]
    divergence = sum(compute_rdp(q=q, noise_multiplier=s, steps=n, orders=WHOLE_ORDERS) for s, q, n in rounds)
    theirs, _ = get_privacy_spent(orders=WHOLE_ORDERS, rdp=divergence, delta=1e-5)
    assert spent_epsilon([GaussianSteps(*part) for part in rounds], 1e-5) == pytest.approx(theirs, abs=1e-3)


@pytest.mark.parametrize(("noise", "rate", "steps"), MECHANISMS[2:])
def test_epsilon_is_never_below_the_tighter_bound_and_near_it(noise: float, rate: float, steps: int) -> None:
    event = SelfComposedDpEvent(PoissonSampledDpEvent(rate, GaussianDpEvent(noise)), steps)
    tight = PLDAccountant().compose(event).get_epsilon(1e-5)
    assert tight <= spent_epsilon([GaussianSteps(noise, rate, steps)], 1e-5) <= 1.35 * tight


@given(noise=st.floats(0.5, 20), steps=st.integers(1, 200))
@examples(10)
def test_without_sampling_the_exact_delta_at_epsilon_is_below_the_requested_delta(noise: float, steps: int) -> None:
    """Balle and Wang 2018, Theorem 8: δ(ε) of a Gaussian mechanism of sensitivity √steps / σ."""
    delta, shift = 1e-5, math.sqrt(steps) / noise
    epsilon = spent_epsilon([GaussianSteps(noise, 1.0, steps)], delta)
    tail = norm.logcdf(-shift / 2 - epsilon / shift) + epsilon
    exact = norm.cdf(shift / 2 - epsilon / shift) - math.exp(min(tail, 0.0))
    assert exact <= delta


@given(noise=st.floats(0.3, 10), rate=st.floats(0.01, 1.0), steps=st.integers(1, 300))
@examples(10)
def test_more_noise_or_fewer_steps_never_cost_more(noise: float, rate: float, steps: int) -> None:
    epsilon = spent_epsilon([GaussianSteps(noise, rate, steps)], 1e-5)
    assert spent_epsilon([GaussianSteps(1.5 * noise, rate, steps)], 1e-5) <= epsilon
    assert spent_epsilon([GaussianSteps(noise, rate, steps + 1)], 1e-5) >= epsilon
    halves = [GaussianSteps(noise, rate, steps // 2), GaussianSteps(noise, rate, steps - steps // 2)]
    assert spent_epsilon(halves, 1e-5) == pytest.approx(epsilon)


@pytest.mark.parametrize(("epsilon", "rate"), [(0.1, 0.02), (8.0, 0.02), (1.0, 0.3), (0.1, 1.0), (8.0, 1.0)])
def test_the_noise_found_meets_epsilon_and_slightly_less_noise_does_not(epsilon: float, rate: float) -> None:
    noise = find_noise_multiplier(epsilon, 1e-5, sampling_rate=rate, steps=64)
    assert spent_epsilon([GaussianSteps(noise, rate, 64)], 1e-5) <= epsilon
    assert spent_epsilon([GaussianSteps(0.999 * noise, rate, 64)], 1e-5) > epsilon


def test_no_steps_have_no_privacy_cost() -> None:
    assert spent_epsilon([], 1e-5) == 0.0
    assert spent_epsilon([GaussianSteps(1.0, 0.1, 0)], 1e-5) == 0.0


@pytest.mark.parametrize("numbers", [(0.0, 0.1, 1), (math.nan, 0.1, 1), (math.inf, 0.1, 1), (1.0, 0.0, 1), (1, 1.1, 1)])
def test_impossible_mechanisms_are_refused(numbers: tuple[float, float, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        GaussianSteps(*numbers)


@pytest.mark.parametrize("delta", [0.0, 1.0, -0.1, math.nan])
def test_an_impossible_delta_is_refused(delta: float) -> None:
    with pytest.raises(ValueError, match="delta"):
        spent_epsilon([], delta)


@pytest.mark.parametrize("steps", [-1, 1.0, True])
def test_steps_are_counted_by_a_whole_number(steps: object) -> None:
    with pytest.raises(ValueError, match="steps"):
        GaussianSteps(1.0, 0.1, steps)  # type: ignore[arg-type]


@pytest.mark.parametrize(("epsilon", "steps"), [(0.0, 10), (-1.0, 10), (math.inf, 10), (math.nan, 10), (1.0, 0)])
def test_an_impossible_target_is_refused(epsilon: float, steps: int) -> None:
    with pytest.raises(ValueError, match="both must be above 0"):
        find_noise_multiplier(epsilon, 1e-5, sampling_rate=0.1, steps=steps)


def test_the_noise_is_found_up_to_the_most_and_not_below_the_least() -> None:
    with pytest.raises(ValueError, match="no noise keeps"):
        find_noise_multiplier(1e-4, 1e-9, sampling_rate=1.0, steps=10**9)
    assert find_noise_multiplier(1e6, 1e-5, sampling_rate=1.0, steps=1) == 0.05
    enough = spent_epsilon([GaussianSteps(9000.0, 1.0, 10**6)], 1e-5)
    assert find_noise_multiplier(enough, 1e-5, sampling_rate=1.0, steps=10**6) == pytest.approx(9000.0, rel=2e-4)
