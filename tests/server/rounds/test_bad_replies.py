"""Bad sites, under every strategy: only their own contribution is lost, and their text is cleaned before logging."""

import math
from functools import cache

import numpy as np
import pytest
from flwr.app import Message

from ept_fed.catalog.strategies import resolve_options
from ept_fed.config.experiment import TrainingSettings
from ept_fed.protocol.layout import Vector
from server.strategies.registry import AGGREGATORS
from tests.server.adding_sites import (
    BAD,
    EXAMPLES,
    SABOTAGES,
    SITES,
    Sabotage,
    grid_run,
    make_plan,
    run,
    with_array,
    with_config,
    with_metrics,
    without_sites,
)

# Two bad sites in each run, so that every sabotage meets every strategy in half the runs. Bulyan needs the other seven.
BAD_SITES = SITES[4:6]
NAMES = list(SABOTAGES)
GROUPS = [NAMES[first : first + len(BAD_SITES)] for first in range(0, len(NAMES), len(BAD_SITES))]


@cache
def payload_without(bad: tuple[str, ...], strategy: str) -> Vector:
    # Without grace, no round waits for the sites that are not there.
    return grid_run(without_sites(*bad), make_plan(strategy=strategy, grace=0.0))[0].payload


def assert_only_bad_sites_are_lost(sabotages: dict[str, Sabotage], strategy: str) -> None:
    others = tuple(site for site in SITES if site not in sabotages)
    attacked, observer = run(make_plan(strategy=strategy), sabotages)
    assert np.array_equal(attacked.payload, payload_without(tuple(sabotages), strategy))
    for record in observer.records:
        assert record.aggregated == others
        assert {(refusal.site, refusal.phase) for refusal in record.refused} == {(bad, "train") for bad in sabotages}
        assert "patient" not in str(record.to_json())


@pytest.mark.parametrize("sabotage", SABOTAGES.values(), ids=SABOTAGES)
def test_one_bad_site_leaves_what_the_others_would_have_made(sabotage: Sabotage) -> None:
    assert_only_bad_sites_are_lost({BAD: sabotage}, "fedavg")


@pytest.mark.parametrize("strategy", sorted(AGGREGATORS))
@pytest.mark.parametrize("names", GROUPS, ids=", ".join)
def test_two_bad_sites_leave_what_the_others_would_have_made(names: list[str], strategy: str) -> None:
    sabotages = {site: SABOTAGES[name] for site, name in zip(BAD_SITES, names, strict=False)}
    assert_only_bad_sites_are_lost(sabotages, strategy)


def test_hostile_text_reaches_no_log_unclean() -> None:
    for name in ("\x1b[2J", "\ud800" * 3, "x" * 600_000, "a\nrefused: everybody"):
        _, observer = run(make_plan(rounds=1), {BAD: with_config(code=name)})
        (reason,) = {refusal.reason for refusal in observer.records[0].refused}
        assert reason.isprintable()
        assert len(reason) <= 300


@pytest.mark.parametrize("strategy", ["fedavgm", "fedadam", "fedyogi", "fedadagrad", "qfedavg", "scaffold", "feddyn"])
def test_a_payload_that_breaks_a_strategy_costs_its_round_and_no_more(strategy: str) -> None:
    """Without a bound on norms, a finite but huge payload in the first round overflows moments or norms."""

    def once(answer: Message, request: Message) -> Message:
        if request.metadata.group_id != "1":
            return answer
        return with_array(np.full(15, 3e38, np.float32))(answer, request)

    options = resolve_options(strategy, {"server_learning_rate": 10.0} if strategy == "fedavgm" else {})
    result, observer = run(make_plan(strategy=strategy, options=options, rounds=5, norm_bound=None), {BAD: once})
    assert np.isfinite(result.payload).all()
    first, *later = observer.records
    if first.aggregated:
        # The rule accepted the payload: the result is finite, as plain averaging without a bound requires.
        return
    assert first.outcome.startswith("kept the old prompts")
    assert all(record.aggregated for record in later)
    others, _ = run(make_plan(strategy=strategy, options=options, rounds=5, norm_bound=None))
    assert np.abs(result.payload).max() <= 10 * np.abs(others.payload).max() + 1


def test_a_site_that_is_refused_has_no_vote_on_stopping() -> None:
    def lie(answer: Message, request: Message) -> Message:
        return with_metrics(validation_auc=1.0)(with_array(np.full(15, 1e6, np.float32))(answer, request), request)

    result, _ = run(make_plan(rounds=3, target_auc=0.999, norm_bound=10.0), dict.fromkeys(SITES[:4], lie))
    assert result.ended == "all rounds"


def test_a_single_sites_word_moves_the_median_little() -> None:
    result, _ = run(make_plan(rounds=3, target_auc=0.999), {BAD: with_metrics(validation_auc=1.0)})
    assert result.ended == "all rounds"


def test_a_fednova_site_that_claims_few_steps_is_a_norm_outlier_per_step() -> None:
    def understate(answer: Message, request: Message) -> Message:
        return with_metrics(steps=1.0)(answer, request)

    def honest(answer: Message, request: Message) -> Message:
        return with_metrics(steps=float(math.ceil(EXAMPLES[BAD] / 8)))(answer, request)

    sabotage = dict.fromkeys(SITES, honest) | {BAD: understate}
    plan = make_plan(strategy="fednova", rounds=1, norm_bound=3.0, training=TrainingSettings(epochs=4, batch_size=8))
    _, observer = run(plan, sabotage)
    assert [refusal.site for refusal in observer.records[0].refused] == [BAD]
    assert "update per step" in observer.records[0].refused[0].reason


def test_a_bad_evaluation_is_refused_and_changes_no_prompt() -> None:
    for sabotage in (SABOTAGES["extra metric"], SABOTAGES["raises"], with_array(np.zeros(15, np.float32))):
        result, observer = run(make_plan(), {BAD: sabotage}, "evaluate")
        assert np.array_equal(result.payload, run(make_plan())[0].payload)
        assert [(refusal.site, refusal.phase) for refusal in observer.records[-1].refused] == [(BAD, "evaluate")]
        assert "auc" not in observer.records[-1].sites[BAD].evaluation


def test_a_run_that_averaged_nothing_keeps_its_prompts_and_has_failed() -> None:
    result, observer = run(make_plan(), dict.fromkeys(SITES, SABOTAGES["NaN"]))
    assert not result.aggregated_anything
    assert not result.payload.any()
    assert len(observer.records[0].refused) == len(SITES)
    assert observer.records[0].outcome == "kept the old prompts: 0 sound replies, 5 needed"
