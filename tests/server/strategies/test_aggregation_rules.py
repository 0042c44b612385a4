"""Each aggregation rule against its definition, and its useful properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ept_fed.protocol.layout import PayloadLayout
from server.strategies.aggregation_rules import (
    AggregationError,
    fednova,
    geometric_median,
    log_mean_exp,
    site_weights,
    weighted_mean,
)
from tests.effort import examples

LAYOUT = PayloadLayout((("sinks", (2, 3)), ("tokens", (1, 1, 4))))
n = LAYOUT.size


def draw(sites: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    weights = rng.random(sites) + 0.1
    return rng.normal(0, 2, (sites, n)).astype(np.float32), weights / weights.sum()


COUNTS = hnp.arrays(np.int64, st.integers(1, 8), elements=st.integers(1, 10_000))


@given(counts=COUNTS, rule=st.sampled_from(["examples", "uniform", "capped"]))
def test_weights_are_shares_that_keep_the_order_of_sizes(counts: np.ndarray, rule: str) -> None:
    weights = site_weights(counts, rule, cap=100)
    assert weights.sum() == pytest.approx(1)
    order = np.argsort(counts, kind="stable")
    assert (np.diff(weights[order]) >= -1e-12).all()


def test_weights_by_hand() -> None:
    counts = np.array([10, 30, 1000])
    assert site_weights(counts, "examples") == pytest.approx(counts / 1040)
    assert site_weights(counts, "uniform") == pytest.approx([1 / 3] * 3)
    assert site_weights(counts, "capped", cap=30) == pytest.approx(np.array([10, 30, 30]) / 70)


@pytest.mark.parametrize(
    ("counts", "rule", "cap"), [([], "uniform", None), ([0, 1], "examples", None), ([1], "capped", None)]
)
def test_weights_that_make_no_sense_are_refused(counts: list[int], rule: str, cap: int | None) -> None:
    with pytest.raises(AggregationError):
        site_weights(np.array(counts, dtype=np.int64), rule, cap)


def test_the_mean_is_numpys_mean() -> None:
    payloads, weights = draw(5)
    np.testing.assert_allclose(
        weighted_mean(payloads, weights), np.average(payloads, axis=0, weights=weights), rtol=1e-6
    )


def test_log_mean_exp_is_the_sink_of_all_columns_together() -> None:
    """Concatenating S sites' columns adds their exponentials: log-mean-exp plus log S."""
    rng = np.random.default_rng(1)
    columns = rng.normal(0, 1, (4, 2, 3, 7))
    folds = np.log(np.exp(columns).sum(-1)).reshape(4, 6)
    payloads = np.concatenate([folds, rng.normal(0, 1, (4, 4))], axis=1).astype(np.float32)
    uniform = np.full(4, 0.25)
    result = log_mean_exp(payloads, uniform, LAYOUT)
    together = np.log(np.exp(columns.transpose(1, 2, 0, 3).reshape(2, 3, 28)).sum(-1)).reshape(6)
    np.testing.assert_allclose(result[:6] + np.log(4), together, rtol=1e-5)
    np.testing.assert_allclose(result[6:], payloads[:, 6:].mean(0), rtol=1e-5)


@examples(12)
@given(seed=st.integers(0, 2**16), shift=st.floats(-500, 500))
def test_log_mean_exp_lies_between_mean_and_maximum_and_never_overflows(seed: int, shift: float) -> None:
    payloads, weights = draw(4, seed)
    payloads[:, :6] += np.float32(shift)
    result = log_mean_exp(payloads, weights, LAYOUT)[:6]
    slack = 1e-4 * (1 + abs(shift))
    assert (result >= weighted_mean(payloads, weights)[:6] - slack).all()
    assert (result <= payloads[:, :6].max(0) + slack).all()


def test_the_geometric_median_ignores_a_minority_however_far_it_lies() -> None:
    payloads, _ = draw(7)
    uniform = np.full(7, 1 / 7)
    attacked = payloads.copy()
    attacked[:3] = 1e6
    honest_spread = np.linalg.norm(payloads[3:] - payloads[3:].mean(0), axis=1).max()
    shift = np.linalg.norm(geometric_median(attacked, uniform) - payloads[3:].mean(0))
    assert shift <= 10 * honest_spread
    assert np.linalg.norm(weighted_mean(attacked, uniform) - payloads[3:].mean(0)) > 1e5


@examples(10)
@given(seed=st.integers(0, 2**16), sites=st.integers(1, 7))
def test_no_nearby_point_beats_the_geometric_median(seed: int, sites: int) -> None:
    payloads, weights = draw(sites, seed)
    median = geometric_median(payloads, weights).astype(np.float64)

    def objective(z: np.ndarray) -> float:
        return float(weights @ np.linalg.norm(payloads - z, axis=1))

    rng = np.random.default_rng(seed)
    for scale in (1e-2, 1e-1, 1.0):
        assert objective(median) <= objective(median + rng.normal(0, scale, n)) + 1e-4


def test_fednova_is_the_mean_when_all_take_equal_steps() -> None:
    payloads, weights = draw(4)
    x = np.ones(n, np.float32)
    np.testing.assert_allclose(
        fednova(x, payloads, weights, np.full(4, 9)), weighted_mean(payloads, weights), rtol=1e-4, atol=1e-5
    )


def test_fednova_undoes_the_pull_of_many_steps() -> None:
    """Two sites have opposite gradients and take ten steps and one step. FedAvg drifts, FedNova does not."""
    x, direction = np.zeros(n, np.float32), np.ones(n, np.float32)
    payloads, steps, uniform = np.stack([10 * direction, -direction]), np.array([10, 1]), np.array([0.5, 0.5])
    assert weighted_mean(payloads, uniform)[0] == pytest.approx(4.5)
    assert fednova(x, payloads, uniform, steps) == pytest.approx(np.zeros(n))


@examples(10)
@given(seed=st.integers(0, 2**16))
def test_identical_sites_leave_every_rule_at_their_payload(seed: int) -> None:
    payload = draw(1, seed)[0][0]
    payloads, uniform = np.tile(payload, (4, 1)), np.full(4, 0.25)
    for result in (
        weighted_mean(payloads, uniform),
        log_mean_exp(payloads, uniform, LAYOUT),
        geometric_median(payloads, uniform),
        fednova(np.zeros(n, np.float32), payloads, uniform, np.full(4, 3)),
    ):
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, payload, rtol=1e-4, atol=1e-5)


def test_what_is_not_finite_or_does_not_fit_is_refused() -> None:
    payloads, weights = draw(3)
    broken = payloads.copy()
    broken[1, 2] = np.nan
    x = np.zeros(n, np.float32)
    for call in (
        lambda: weighted_mean(broken, weights),
        lambda: weighted_mean(payloads, weights[:2]),
        lambda: weighted_mean(payloads, 2 * weights),
        lambda: weighted_mean(payloads[:0], weights[:0]),
        lambda: fednova(x, payloads, weights, np.array([1, 0, 1])),
    ):
        with pytest.raises(AggregationError):
            call()


@pytest.mark.parametrize("far", [1e6, 1e9, 1e12, 1e20])
def test_no_distance_lets_one_site_drag_the_geometric_median(far: float) -> None:
    payloads = np.random.default_rng(0).normal(0, 1, (9, 12)).astype(np.float32)
    uniform = np.full(9, 1 / 9)
    clean = geometric_median(payloads, uniform)
    payloads[4] = far
    assert np.linalg.norm(geometric_median(payloads, uniform) - clean) < 1.0
