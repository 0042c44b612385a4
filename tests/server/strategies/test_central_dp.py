"""Central DP: the noisy mean of clipped updates, for every strategy that needs only the mean."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import pytest

from ept_fed.catalog.strategies import STRATEGIES
from ept_fed.config.privacy import SitePrivacySettings
from ept_fed.protocol.layout import PayloadLayout, Vector
from ept_fed.protocol.messages import TOLD_METRICS, TRAIN_METRICS
from server.strategies.base import Update
from server.strategies.central_dp import NoisyMean
from server.strategies.registry import create_aggregator
from tests.server.adding_sites import SABOTAGES, SITES, make_plan, run, step_of, with_metrics

WIDE = PayloadLayout((("sinks", (100, 300)),))


def private(**changes: object) -> SitePrivacySettings:
    return SitePrivacySettings.model_validate(
        {"noise": "central", "clip": 1.0, "noise_multiplier": 2.0, "metrics": True, **changes}
    )


def no_noise(count: int) -> bytes:
    return (1 << 63).to_bytes(8, "little") * (count // 8)


def updates(*payloads: Vector) -> list[Update]:
    return [Update(f"site-{index}", payload, 10, 1.0, 1) for index, payload in enumerate(payloads)]


def noisy(settings: SitePrivacySettings, **named: object) -> NoisyMean:
    inner = create_aggregator(make_plan(layout=WIDE, initial=np.zeros(WIDE.size, np.float32)))
    return NoisyMean(inner, settings, rounds=4, **named)  # type: ignore[arg-type]


def test_without_its_noise_it_is_the_mean_of_the_clipped_updates() -> None:
    start = np.ones(4, np.float32)
    sent = [start + np.float32([0.3, 0, 0, 0]), start + np.float32([0, 0, 0, 40.0])]
    mean = noisy(private(), entropy=no_noise).aggregate(1, start, updates(*sent))
    np.testing.assert_allclose(mean, [1.15, 1, 1, 1.5], atol=1e-6)


@pytest.mark.parametrize("sites", [1, 5])
def test_the_noise_on_a_mean_is_that_of_the_sum_over_the_sites(sites: int) -> None:
    zeros = np.zeros(WIDE.size, np.float32)
    mean = noisy(private(clip=0.5)).aggregate(1, zeros, updates(*[zeros] * sites))
    assert mean.std() == pytest.approx(2.0 * 0.5 / sites, rel=6 / math.sqrt(2 * WIDE.size))


@pytest.mark.parametrize("strategy", [name for name, info in STRATEGIES.items() if info.mean_suffices])
def test_strategies_are_given_the_noisy_mean_and_their_memory_outlives_a_restart(strategy: str) -> None:
    settings = private(noise_multiplier=1e-6, adaptive={"count_noise": 1e-3})
    plan = make_plan(strategy=strategy, site_privacy=settings, weights="uniform", norm_bound=None)
    sent = [plan.initial + 0.01 * step_of(site) for site in SITES]
    plain = create_aggregator(dataclasses.replace(plan, site_privacy=None))
    held, restarted = create_aggregator(plan), create_aggregator(plan)
    one = Update("the mean", np.mean(sent, axis=0, dtype=np.float64).astype(np.float32), 9, 0.0, 1)
    first = held.aggregate(1, plan.initial, updates(*sent))
    np.testing.assert_allclose(first, plain.aggregate(1, plan.initial, [one]), atol=1e-4)
    assert isinstance(held, NoisyMean)
    restarted.load_state({name: np.array(value) for name, value in held.state().items()}, first)
    assert isinstance(restarted, NoisyMean)
    assert restarted.clip == pytest.approx(held.clip)
    assert restarted.clip < 1.0, "all updates were shorter than the clip"
    np.testing.assert_allclose(
        restarted.aggregate(2, first, updates(*sent)), held.aggregate(2, first, updates(*sent)), atol=1e-4
    )


def test_a_memory_without_a_clip_is_of_another_run() -> None:
    with pytest.raises(ValueError, match="without central noise"):
        noisy(private()).load_state({}, np.zeros(3, np.float32))


def test_an_epsilon_that_no_noise_keeps_is_refused() -> None:
    with pytest.raises(ValueError, match="no noise keeps"):
        NoisyMean(noisy(private()), private(noise_multiplier=None, epsilon=1e-9), rounds=4)


def test_a_run_goes_on_without_the_site_whose_numbers_are_none() -> None:
    settings = private(clip=100.0, noise_multiplier=1e-6)
    plan = make_plan(site_privacy=settings, weights="uniform", norm_bound=None, rounds=1)
    result, observer = run(plan, {SITES[0]: SABOTAGES["NaN"]})
    assert observer.records[0].aggregated == SITES[1:]
    np.testing.assert_allclose(result.payload, np.mean([step_of(site) for site in SITES[1:]], axis=0), atol=1e-3)


@pytest.mark.parametrize(
    ("told", "refused"),
    [
        ({}, True),
        (dict.fromkeys(("loss", "validation_auc"), math.nan), True),
        ("all", False),
    ],
)
def test_loss_and_quality_without_noise_are_refused_at_the_server_too(
    told: Mapping[str, float] | str, refused: bool
) -> None:
    plan = make_plan(site_privacy=private(metrics=False), weights="uniform", norm_bound=None, rounds=1)
    all_of_them = {key: math.nan for key in TRAIN_METRICS if key not in TOLD_METRICS}
    hidden = all_of_them if isinstance(told, str) else told
    _, observer = run(plan, dict.fromkeys(SITES, with_metrics(**hidden)))
    assert (observer.records[0].aggregated == ()) == refused
