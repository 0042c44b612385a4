"""SCAFFOLD and FedDyn: one step computed by hand, and the correction of client drift between different sites."""

from collections.abc import Callable

import numpy as np
import pytest

from server.strategies.aggregation_rules import control_mean, feddyn, feddyn_control, scaffold, weighted_mean
from server.strategies.base import Aggregator, Update
from server.strategies.control_variates import FedDyn, Scaffold

RNG = np.random.default_rng(0)
n, S = 6, 4
uniform = np.full(S, 1 / S)


def weigh(examples: np.ndarray) -> np.ndarray:
    return np.full(len(examples), 1 / len(examples))


def test_scaffold_with_rate_one_is_the_mean_and_scales_the_step_otherwise() -> None:
    x, payloads = RNG.normal(size=n).astype(np.float32), RNG.normal(size=(S, n)).astype(np.float32)
    mean = weighted_mean(payloads, uniform)
    np.testing.assert_allclose(scaffold(x, payloads, uniform, 1.0), mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scaffold(x, payloads, uniform, 0.5), (x + mean) / 2, rtol=1e-5, atol=1e-6)


def test_feddyn_by_hand() -> None:
    x, y = np.zeros(n, np.float32), np.ones((S, n), np.float32)
    controls = {f"s{i}": feddyn_control(np.zeros(n, np.float32), x, y[i], 0.5) for i in range(S)}
    assert controls["s0"] == pytest.approx(-0.5)
    h = control_mean(controls, S, x)
    assert feddyn(y, uniform, h, 0.5) == pytest.approx(2.0)
    # Two of eight sites answered: the others' controls are still zero.
    assert control_mean({key: controls[key] for key in ("s0", "s1")}, 8, x) == pytest.approx(-0.125)


def federate_quadratics(create: Callable[[], Aggregator], *, alpha: float = 0.0, rounds: int = 400) -> float:
    """Minimise Σ ½ aᵢ‖θ - bᵢ‖² with ten local gradient steps a round; return the distance to the common minimum."""
    rng = np.random.default_rng(1)
    curvature, minima = np.array([0.2, 1.0, 3.0, 5.0]), rng.normal(0, 3, (S, n))
    best = (curvature[:, None] * minima).sum(0) / curvature.sum()
    aggregator, x = create(), np.zeros(n, np.float32)
    for round_number in range(1, rounds + 1):
        updates = []
        for site in range(S):
            correction = aggregator.correction(f"s{site}")
            y = x.astype(np.float64)
            for _ in range(10):
                gradient = curvature[site] * (y - minima[site]) + alpha * (y - x)
                y -= 0.05 * (gradient if correction is None else gradient + correction)
            at_start = (curvature[site] * (x - minima[site])).astype(np.float32)
            updates.append(Update(f"s{site}", y.astype(np.float32), 10, 1.0, 10, at_start))
        x = aggregator.aggregate(round_number, x, updates)
    return float(np.linalg.norm(x - best) / np.linalg.norm(best))


class _Mean(Aggregator):
    def aggregate(self, round_number, payload, updates):  # type: ignore[no-untyped-def]
        return weighted_mean(np.stack([update.payload for update in updates]), uniform)


def test_where_the_mean_settles_off_the_common_minimum_corrected_sites_reach_it() -> None:
    assert federate_quadratics(_Mean) > 0.1
    assert federate_quadratics(lambda: Scaffold(S, weigh, 1.0)) < 1e-4
    # FedDyn's theory assumes exact solutions of the local problems. Here they are solved by gradient steps.
    assert federate_quadratics(lambda: FedDyn(S, weigh, 1.0), alpha=1.0) < 0.02


def test_a_first_round_has_no_corrections() -> None:
    assert Scaffold(S, weigh, 1.0).correction("s0") is None
    assert FedDyn(S, weigh, 1.0).correction("s0") is None


def test_corrections_of_all_sites_cancel_once_all_were_heard() -> None:
    scaffold_strategy = Scaffold(S, weigh, 1.0)
    updates = [
        Update(f"s{i}", np.zeros(n, np.float32), 10, 1.0, 1, RNG.normal(size=n).astype(np.float32)) for i in range(S)
    ]
    scaffold_strategy.aggregate(1, np.zeros(n, np.float32), updates)
    total = sum(scaffold_strategy.correction(f"s{i}") for i in range(S))  # type: ignore[misc]
    np.testing.assert_allclose(total, 0, atol=1e-5)


def test_scaffold_without_a_gradient_is_a_mistake_of_ours_not_a_silent_mean() -> None:
    with pytest.raises(ValueError, match="without the gradient"):
        Scaffold(S, weigh, 1.0).aggregate(1, np.zeros(n), [Update("s0", np.zeros(n, np.float32), 1, 1.0, 1)])


def test_a_memory_of_another_shape_or_strategy_is_refused() -> None:
    x = np.zeros(n, np.float32)
    for state in ({"momentum_vector": x}, {"control/s0": np.zeros(n + 1, np.float32)}):
        with pytest.raises(ValueError, match="one control"):
            Scaffold(S, weigh, 1.0).load_state(state, x)
