"""Fixed-point sums are exact to half a step and have room for all sites; other inputs are refused."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ept_fed.errors import InputRefusedError
from ept_fed.privacy.secure_aggregation.fixed_point import FixedPoint
from ept_fed.protocol.layout import PayloadMismatchError

CODINGS = [(64, 2.0**-24, 64.0, 1000), (32, 2.0**-10, 32.0, 200)]


@pytest.mark.parametrize(("bits", "step", "bound", "heaviest"), CODINGS)
@given(st.data())
def test_the_sum_of_words_decodes_to_the_weighted_mean(
    bits: int, step: float, bound: float, heaviest: int, data: st.DataObject
) -> None:
    sites = data.draw(st.integers(1, 20))
    coding = FixedPoint(sites=20, heaviest=heaviest, step=step, bound=bound, bits=bits)
    numbers = st.floats(-bound, bound, width=32)
    vectors = [np.array(data.draw(st.lists(numbers, min_size=3, max_size=3)), np.float32) for _ in range(sites)]
    weights = [data.draw(st.integers(1, heaviest)) for _ in range(sites)]
    total = np.zeros(4, coding.dtype)
    for vector, weight in zip(vectors, weights, strict=True):
        total += coding.encode(vector, weight)
    mean, weight = coding.decode(total, sites)
    expected = np.average(np.array(vectors, np.float64), axis=0, weights=weights)
    assert weight == sum(weights)
    assert mean.dtype == np.float32
    # The tolerance is half a step of rounding, plus the float32 rounding at the end.
    np.testing.assert_allclose(mean, expected, rtol=2.0**-23, atol=step / 2)


@pytest.mark.parametrize(("bits", "step", "bound", "heaviest"), CODINGS)
def test_the_largest_sum_does_not_wrap_around(bits: int, step: float, bound: float, heaviest: int) -> None:
    coding = FixedPoint(sites=20, heaviest=heaviest, step=step, bound=bound, bits=bits)
    for sign in (1, -1):
        total = np.zeros(2, coding.dtype)
        for _ in range(20):
            total += coding.encode(np.array([sign * bound], np.float32), heaviest)
        assert coding.decode(total, 20)[0].tolist() == [sign * bound]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 64.001, -1e30])
def test_a_number_that_cannot_be_summed_is_refused_without_quoting_it(value: float) -> None:
    with pytest.raises(PayloadMismatchError) as refusal:
        FixedPoint(sites=3, heaviest=1).encode(np.array([0, value], np.float32), 1)
    assert "30" not in str(refusal.value)
    assert "001" not in str(refusal.value)


@pytest.mark.parametrize("weight", [0, -1, 11, True, 1.0, np.int64(1)])
def test_an_invalid_weight_is_refused(weight: object) -> None:
    with pytest.raises(PayloadMismatchError, match="from 1 to 10"):
        FixedPoint(sites=3, heaviest=10).encode(np.zeros(2, np.float32), weight)


@pytest.mark.parametrize("vector", [np.zeros(2), np.zeros((2, 1), np.float32), np.zeros(2, np.int64)])
def test_only_a_vector_of_float32_is_encoded(vector: np.ndarray) -> None:
    with pytest.raises(PayloadMismatchError, match="float32"):
        FixedPoint(sites=3, heaviest=10).encode(vector, 1)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"sites": 0}, "sites"),
        ({"heaviest": 1.5}, "heaviest"),
        ({"step": 0.1}, "step"),
        ({"step": math.nan}, "step"),
        ({"bound": math.inf}, "bound"),
        ({"bound": math.nan}, "bound"),
        ({"bound": 2.0**-30}, "bound"),
        ({"bits": 16}, "bits"),
        ({"bits": 32}, "step"),
        ({"heaviest": 10**12}, "step"),
    ],
)
def test_settings_without_room_for_the_sum_are_refused(change: dict[str, object], field: str) -> None:
    with pytest.raises(InputRefusedError) as refusal:
        FixedPoint(**{"sites": 3, "heaviest": 10, **change})
    assert field in [problem.field for problem in refusal.value.problems]


@pytest.mark.parametrize("words", [[0, 0], [0, 31], [31 << 30, 30], [(1 << 64) - (31 << 30), 30], [1 << 63, 30]])
def test_an_impossible_sum_is_refused(words: list[int]) -> None:
    with pytest.raises(PayloadMismatchError):
        FixedPoint(sites=3, heaviest=10).decode(np.array(words, np.uint64), 3)
