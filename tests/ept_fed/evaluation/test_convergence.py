import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ept_fed.evaluation.convergence import AUC_TOLERANCE, MIN_ROUNDS, assess_convergence
from tests.effort import examples

FLAT = [0.5] * 16


@pytest.mark.parametrize(
    ("auc", "loss", "state"),
    [
        (np.linspace(0.5, 0.9, 16), FLAT, "still improving"),
        (FLAT, np.linspace(1.0, 0.5, 16), "still improving"),
        (FLAT, FLAT, "ended"),
        # Rises early and is flat in the second half.
        ([0.5, 0.6, 0.7, 0.75, 0.78, 0.79, 0.8, 0.8] + [0.8] * 8, FLAT, "ended"),
        # Overfits at the end.
        (np.linspace(0.9, 0.7, 16), np.linspace(0.5, 1.0, 16), "ended"),
        (np.linspace(0.5, 0.9, MIN_ROUNDS - 1), [1.0] * (MIN_ROUNDS - 1), "not known"),
        ([], [], "not known"),
        ([math.nan] * 16, FLAT, "not known"),
    ],
)
def test_training_has_ended_if_the_last_quarter_is_no_better_than_the_one_before(
    auc: list[float], loss: list[float], state: str
) -> None:
    assert assess_convergence(auc, loss).state == state


@examples(25)
@given(rounds=st.integers(8, 60), rise=st.floats(0, 0.05), noise=st.floats(0, 0.02), seed=st.integers(0, 1000))
def test_the_changes_are_those_of_the_means_of_the_quarters(rounds: int, rise: float, noise: float, seed: int) -> None:
    auc = 0.7 + noise * np.random.default_rng(seed).normal(size=rounds)
    quarter = rounds // 4
    auc[-quarter:] += rise
    found = assess_convergence(auc, np.ones(rounds))
    expected = auc[-quarter:].mean() - auc[-2 * quarter : -quarter].mean()
    assert found.auc_change == pytest.approx(expected)
    assert found.loss_change == 0.0
    assert (found.state == "still improving") == (found.auc_change > AUC_TOLERANCE)


def test_rounds_without_results_do_not_count() -> None:
    auc = [math.nan, *np.linspace(0.5, 0.9, 8), math.nan]
    assert assess_convergence(auc, [1.0] * 10).rounds == 8


def test_curves_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="3 values of the AUC and 2 of the loss"):
        assess_convergence([0.5] * 3, [1.0] * 2)
