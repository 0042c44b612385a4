"""federation.site_privacy: the settings that it needs, and those that do not fit it."""

from collections.abc import Callable

import pytest

from ept_fed.catalog.strategies import STRATEGIES
from ept_fed.config.experiment import Experiment, FederationSettings
from ept_fed.errors import InputRefusedError
from ept_fed.validation.experiment import check_sites

LOCAL = "federation.site_privacy={noise: local, clip: 0.5, noise_multiplier: 2}"
CENTRAL = (
    "federation.site_privacy={noise: central, clip: 0.5, noise_multiplier: 2}",
    "federation.weights=uniform",
    "federation.norm_bound=null",
)
DISTRIBUTED = (
    "federation.site_privacy={noise: distributed, clip: 0.5, noise_multiplier: 2}",
    "federation.weights=uniform",
    "federation.norm_bound=null",
    "federation.secure_aggregation={}",
)
Micro = Callable[..., Experiment]


def fields_of(refusal: pytest.ExceptionInfo[InputRefusedError]) -> set[str]:
    return {problem.field for problem in refusal.value.problems}


def test_updates_have_no_noise_unless_configured(micro: Micro) -> None:
    assert micro().federation.site_privacy is None
    for given in ((LOCAL,), CENTRAL, DISTRIBUTED):
        assert micro(*given).federation.site_privacy is not None


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("{clip: 1, noise_multiplier: 1}", "noise"),
        ("{noise: nobody, clip: 1, noise_multiplier: 1}", "noise"),
        ("{noise: local, clip: 0, noise_multiplier: 1}", "clip"),
        ("{noise: local, clip: .nan, noise_multiplier: 1}", "clip"),
        ("{noise: local, noise_multiplier: 1}", "clip"),
        ("{noise: local, clip: 1}", "either noise_multiplier or epsilon"),
        ("{noise: local, clip: 1, noise_multiplier: 1, epsilon: 8}", "either noise_multiplier or epsilon"),
        ("{noise: local, clip: 1, noise_multiplier: 0}", "noise_multiplier"),
        ("{noise: local, clip: 1, epsilon: 1, delta: 1}", "delta"),
        ("{noise: local, clip: 1, epsilon: 1.0e-9}", "epsilon"),
        ("{noise: local, clip: 1, noise_multiplier: 1, adaptive: {}}", "adaptive"),
        ("{noise: central, clip: 1, noise_multiplier: 1, adaptive: {quantile: 1}}", "quantile"),
        ("{noise: central, clip: 1, noise_multiplier: 1, adaptive: {count_noise: 0.5}}", "count_noise"),
        ("{noise: local, clip: 1, noise_multiplier: 1, sigma: 1}", "sigma"),
    ],
)
def test_impossible_numbers_are_refused_by_name(micro: Micro, given: str, named: str) -> None:
    with pytest.raises(InputRefusedError, match=named):
        micro(*CENTRAL[1:], f"federation.site_privacy={given}")


@pytest.mark.parametrize(
    ("given", "override", "field"),
    [
        ((LOCAL,), "training.privacy={clip: 1, noise_multiplier: 1}", "training.privacy"),
        ((LOCAL,), "federation.patience=2", "federation.patience"),
        ((LOCAL,), "federation.target_auc=0.9", "federation.target_auc"),
        ((LOCAL,), "federation.strategy=qfedavg", "federation.strategy"),
        (CENTRAL, "federation.weights=examples", "federation.weights"),
        (CENTRAL, "federation.norm_bound=10", "federation.norm_bound"),
        (CENTRAL, "federation.averaging=log_mean_exp", "federation.averaging"),
        (CENTRAL, "federation.secure_aggregation={}", "federation.site_privacy.noise"),
        (DISTRIBUTED, "federation.secure_aggregation=null", "federation.site_privacy.noise"),
        (DISTRIBUTED, "federation.weights=examples", "federation.weights"),
    ],
)
def test_settings_that_the_noise_does_not_cover_are_refused_by_name(
    micro: Micro, given: tuple[str, ...], override: str, field: str
) -> None:
    with pytest.raises(InputRefusedError) as refusal:
        micro(*given, override)
    assert field in fields_of(refusal)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_strategies_that_need_more_than_the_mean_are_refused_with_central_noise(micro: Micro, strategy: str) -> None:
    def build() -> None:
        micro(*CENTRAL, f"federation.strategy={strategy}")

    if STRATEGIES[strategy].mean_suffices:
        build()
    else:
        with pytest.raises(InputRefusedError) as refusal:
            build()
        assert "federation.strategy" in fields_of(refusal)


def test_released_metrics_may_stop_a_run(micro: Micro) -> None:
    spoken = LOCAL.replace("local,", "local, metrics: true,")
    assert micro(spoken, "federation.patience=2").federation.patience == 2


@pytest.mark.parametrize(
    ("clip", "fields"),
    [
        (1e-4, []),
        (1e-5, ["federation.site_privacy.clip"]),
        (1.5, []),
        (3.0, ["federation.site_privacy.clip"]),
    ],
)
def test_noise_shares_that_fixed_point_cannot_represent_are_refused(clip: float, fields: list[str]) -> None:
    federation = FederationSettings.model_validate(
        {
            "secure_aggregation": {},
            "norm_bound": None,
            "weights": "uniform",
            "site_privacy": {"noise": "distributed", "clip": clip, "noise_multiplier": 2.0},
        }
    )
    assert [problem.field for problem in check_sites(federation, ["a", "b", "c", "d"])] == fields
