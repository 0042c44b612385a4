"""Secret draws have the stated distribution and depend on no seed."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from ept_fed.privacy.dp.noise import draw_normal, draw_poisson_sample


def test_noise_is_normal_with_mean_0_and_variance_1() -> None:
    draws = draw_normal(200_000)
    assert abs(draws.mean()) < 6 / math.sqrt(len(draws))
    assert abs(draws.var() - 1) < 6 * math.sqrt(2 / len(draws))
    assert stats.kstest(draws, "norm").pvalue > 1e-6


def test_no_seed_gives_the_same_noise_twice() -> None:
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 - noise must not come from this generator
        drawn.append(draw_normal(8))
    assert not np.array_equal(*drawn)


@pytest.mark.parametrize("byte", [b"\x00", b"\xff"])
def test_the_most_extreme_bytes_give_finite_noise(byte: bytes) -> None:
    assert 8.0 < abs(draw_normal(1, entropy=lambda n: byte * n)[0]) < 8.4


@pytest.mark.parametrize("rate", [0.01, 0.3, 1.0])
def test_every_image_is_drawn_with_the_rate_and_independently_of_the_others(rate: float) -> None:
    times, count = 2000, 20
    drawn = np.zeros((times, count))
    for row in drawn:
        row[draw_poisson_sample(count, rate)] = 1
    spread = math.sqrt(rate * (1 - rate) / times)
    assert np.abs(drawn.mean(0) - rate).max() <= 6 * spread
    sizes = drawn.sum(1)
    assert sizes.var() == pytest.approx(count * rate * (1 - rate), rel=0.35, abs=1e-9)


@pytest.mark.parametrize(("byte", "above", "below"), [(b"\x00", 2.0**-53, 2.0**-54), (b"\xff", 1.0, 1.0 - 2.0**-53)])
def test_the_uniform_draws_are_the_midpoints_of_equal_parts(byte: bytes, above: float, below: float) -> None:
    """The first one is 2⁻⁵⁴; the last one would round to 1, so it is the next number below."""
    for count in (1, 3):
        assert list(draw_poisson_sample(count, above, entropy=lambda n: byte * n)) == list(range(count))
        assert not len(draw_poisson_sample(count, below, entropy=lambda n: byte * n))


def test_an_impossible_rate_is_refused() -> None:
    for rate in (0.0, 1.01, math.nan):
        with pytest.raises(ValueError, match="rate"):
            draw_poisson_sample(3, rate)
