"""The round loop over LocalGrid: selection of sites, waiting for replies, averaging, and the end of the run."""

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from flwr.app import Error, Message

from client.site.validation_curve import ValidationCurve
from ept_fed.catalog.strategies import STRATEGIES
from ept_fed.config.experiment import TrainingSettings
from ept_fed.flower.messages import decode_request
from ept_fed.protocol.messages import RoundRequest
from server.rounds.wait_for_sites import wait_for_sites
from server.strategies.registry import AGGREGATORS, create_aggregator
from simulations.engine.local_grid import LocalGrid
from tests.server.adding_sites import (
    BAD,
    EXAMPLES,
    LAYOUT,
    SABOTAGES,
    SITES,
    Sabotage,
    auc_of,
    grid_run,
    make_plan,
    mean_step,
    run,
    step_of,
    with_array,
    with_metrics,
    without_sites,
)


def test_fedavg_weighs_sites_by_their_examples() -> None:
    result, observer = run(make_plan())
    np.testing.assert_allclose(result.payload, 2 * mean_step(*SITES), rtol=1e-5)
    assert result.payload.dtype == np.float32
    assert result.ended == "all rounds"
    np.testing.assert_allclose(observer.payloads[0], mean_step(*SITES), rtol=1e-5)


def test_sites_are_averaged_in_the_order_of_their_names() -> None:
    shuffled = run(make_plan(sites=SITES))[0]
    assert shuffled.rounds[0].aggregated == SITES


def test_each_record_evaluates_what_its_own_round_left() -> None:
    _, observer = run(make_plan())
    for record, payload in zip(observer.records, observer.payloads, strict=True):
        for exchange in record.sites.values():
            assert exchange.evaluation["auc"] == pytest.approx(auc_of(payload), rel=1e-5)
        assert {site: exchange.examples for site, exchange in record.sites.items()} == EXAMPLES
        assert all(
            exchange.train == dict.fromkeys(("loss", "steps", "seconds"), 1.0) for exchange in record.sites.values()
        )


def test_a_run_needs_one_exchange_a_round_and_one_more() -> None:
    asked: list[str] = []

    class CountingGrid(LocalGrid):
        def send_and_receive(self, messages, *, timeout=None):  # type: ignore[no-untyped-def]
            messages = list(messages)
            asked.append(messages[0].metadata.message_type)
            return super().send_and_receive(messages, timeout=timeout)

    grid_run(CountingGrid, make_plan(rounds=3))
    assert asked == ["train", "train", "train", "evaluate"]


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold"])
def test_a_request_holds_what_its_phase_needs_and_no_more(strategy: str) -> None:
    asked: list[RoundRequest] = []

    class ListeningGrid(LocalGrid):
        def send_and_receive(self, messages, *, timeout=None):  # type: ignore[no-untyped-def]
            messages = list(messages)
            assert {one.metadata.ttl for one in messages} == {plan.deadline}
            asked.extend(decode_request(one, one.metadata.message_type, LAYOUT) for one in messages)
            return super().send_and_receive(messages, timeout=timeout)

    plan = make_plan(strategy=strategy, rounds=2, training=TrainingSettings(epochs=1))
    grid_run(ListeningGrid, plan)
    assert len(asked) == 3 * len(SITES)
    for request in asked:
        assert request.rounds == 2
        if request.phase == "train":
            assert (request.split, request.settings) == ("train", plan.training)
            assert request.wants_gradient == (strategy == "scaffold")
            # There are no corrections before SCAFFOLD has seen a gradient.
            assert (request.correction is not None) == (strategy == "scaffold" and request.header.round == 2)
        else:
            assert (request.split, request.settings, request.header.round) == ("validation", None, 2)
            assert (request.wants_gradient, request.correction) == (False, None)


def test_every_byte_is_counted_in_both_directions() -> None:
    _, observer = run(make_plan())
    for exchange in observer.records[0].sites.values():
        assert 4 * 15 < exchange.train_bytes_received == exchange.bytes_received
        assert exchange.bytes_sent > 4 * 15
    for exchange in observer.records[1].sites.values():
        assert exchange.bytes_received > exchange.train_bytes_received


@pytest.mark.parametrize(("quorum", "aggregates"), [(None, True), (7, True), (8, False)])
def test_below_the_quorum_the_old_prompts_stay(quorum: int | None, aggregates: bool) -> None:
    bad = dict.fromkeys(SITES[:2], SABOTAGES["NaN"])
    result, _ = run(make_plan(quorum=quorum), bad)
    assert result.aggregated_anything == aggregates


@pytest.mark.parametrize("sound", [0, 1])
def test_a_single_sound_reply_is_enough_if_the_quorum_is_one(sound: int) -> None:
    result, observer = run(make_plan(rounds=1, quorum=1), dict.fromkeys(SITES[sound:], SABOTAGES["NaN"]))
    assert observer.records[0].aggregated == SITES[:sound]
    np.testing.assert_allclose(result.payload, step_of(SITES[0]) if sound else np.zeros(15), rtol=1e-6)


def test_below_the_strategys_assumption_the_old_prompts_stay() -> None:
    result, observer = run(make_plan(strategy="bulyan"), dict.fromkeys(SITES[:3], SABOTAGES["NaN"]))
    assert not result.aggregated_anything
    assert observer.records[0].outcome == "kept the old prompts: 6 sound replies, 7 needed"


@pytest.mark.parametrize(
    ("changes", "quorum"), [({}, 5), ({"quorum": 7}, 7), ({"sites_per_round": 3}, 2), ({"quorum": 1}, 1)]
)
def test_a_round_waits_for_the_sites_that_it_needs(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], quorum: int
) -> None:
    asked = []

    def note(grid: LocalGrid, wanted: Sequence[str], **limits: float) -> tuple[dict[str, int], list[str]]:
        asked.append((len(wanted), limits))
        return wait_for_sites(grid, wanted, **limits)  # type: ignore[arg-type]

    monkeypatch.setattr("server.rounds.loop.wait_for_sites", note)
    run(make_plan(rounds=1, grace=0.05, **changes))
    training, evaluation = asked
    assert training == (changes.get("sites_per_round", 9), {"deadline": 0.1, "quorum": quorum, "grace": 0.05})
    assert evaluation == (9, {"deadline": 0.1, "quorum": changes.get("quorum", 5), "grace": 0.05})


class SilentGrid(LocalGrid):
    """A grid on which one site never answers, an unknown node answers, and another site answers twice."""

    def send_and_receive(self, messages, *, timeout=None) -> Iterator[Message]:  # type: ignore[no-untyped-def]
        for message in super().send_and_receive(messages, timeout=timeout):
            if message.metadata.src_node_id == 1:
                message.metadata.__dict__["_src_node_id"] = 99
            yield message
            if message.metadata.src_node_id == 2:
                yield message


def test_silent_sites_strangers_and_repeaters_are_named_and_ignored() -> None:
    result, observer = grid_run(SilentGrid, make_plan(rounds=1))
    reasons = {(refusal.site, refusal.reason) for refusal in observer.records[0].refused if refusal.phase == "train"}
    assert reasons == {
        ("site-01", "did not answer in time"),
        ("99", "was not selected"),
        ("site-02", "answered twice"),
    }
    np.testing.assert_allclose(result.payload, mean_step(*SITES[1:]), rtol=1e-5)


class LinkErrorGrid(LocalGrid):
    """A grid whose SuperLink answers for an absent node with its own id 1, as in Flower 1.41."""

    def send_and_receive(self, messages, *, timeout=None) -> Iterator[Message]:  # type: ignore[no-untyped-def]
        for request, reply in zip(messages, super().send_and_receive(messages, timeout=timeout), strict=True):
            if reply.metadata.src_node_id == 4:
                reply = Message(Error(code=3, reason="Node Unavailable"), reply_to=request)  # noqa: PLW2901
                reply.metadata.__dict__["_src_node_id"] = 1
            yield reply


def test_an_error_from_the_superlink_is_attributed_to_the_right_site() -> None:
    result, observer = grid_run(LinkErrorGrid, make_plan(rounds=1))
    (refusal,) = [refusal for refusal in observer.records[0].refused if refusal.phase == "train"]
    assert refusal.site == "site-04"
    assert refusal.reason == "did not answer in time"
    assert result.rounds[0].aggregated == tuple(site for site in SITES if site != "site-04")


def test_an_absent_site_delays_a_round_by_the_grace_and_not_by_the_deadline() -> None:
    started = time.monotonic()
    result, _ = grid_run(without_sites(BAD), make_plan(rounds=1, deadline=3600.0, grace=0.05))
    assert result.aggregated_anything
    assert time.monotonic() - started < 60


class Doubled(LocalGrid):
    """A grid on which two nodes with the same name are online."""

    def get_nodes(self):  # type: ignore[no-untyped-def]
        nodes = super().get_nodes()
        nodes[0].name = BAD
        return nodes


def test_two_nodes_of_one_name_are_both_left_out() -> None:
    result, observer = grid_run(Doubled, make_plan(rounds=1))
    reasons = {(r.site, r.reason) for r in observer.records[0].refused if r.phase == "train"}
    assert (BAD, "two nodes are online under its name") in reasons
    assert BAD not in result.rounds[0].aggregated


def test_a_site_that_is_not_online_is_named_after_the_deadline_and_the_others_go_on() -> None:
    class Shrunk(LocalGrid):
        def get_nodes(self):  # type: ignore[no-untyped-def]
            return super().get_nodes()[1:]

    result, observer = grid_run(Shrunk, make_plan(rounds=1))
    absent = [refusal for refusal in observer.records[0].refused if refusal.reason == "is not online"]
    assert [(refusal.site, refusal.phase) for refusal in absent] == [("site-01", "train"), ("site-01", "evaluate")]
    np.testing.assert_allclose(result.payload, mean_step(*SITES[1:]), rtol=1e-5)


@pytest.mark.parametrize(("per_round", "count"), [(1.0, 9), (0.5, 4), (0.01, 1), (3, 3), (9, 9)])
def test_a_rounds_sites_are_drawn_by_seed_and_round(per_round: float, count: int) -> None:
    plan = make_plan(sites_per_round=per_round, rounds=4)
    first, again = run(plan)[0], run(plan)[0]
    asked = [record.asked for record in first.rounds]
    assert all(len(sites) == count for sites in asked)
    assert asked == [record.asked for record in again.rounds]
    assert np.array_equal(first.payload, again.payload)
    if count in (3, 4):
        assert len(set(asked)) > 1
        assert asked != [record.asked for record in run(dataclasses.replace(plan, seed=1))[0].rounds]


def test_a_target_ends_the_run_with_the_prompts_that_reached_it() -> None:
    result, observer = run(make_plan(rounds=10, target_auc=0.85))
    assert result.ended == "target AUC reached in round 2"
    assert len(result.rounds) == 2
    assert np.array_equal(result.payload, observer.payloads[1])
    assert [record.round for record in observer.records] == [1, 2]
    whole, _ = run(make_plan(rounds=3))
    # Counted with it: the exchange of round 3, and the request that names the chosen round, since the sites trained on.
    stopping, first = (result.rounds[index].sites[BAD].bytes_received for index in (-1, 0))
    assert 2.8 * first < stopping < 3 * first
    assert first == whole.rounds[0].sites[BAD].bytes_received


def test_undefined_aucs_have_no_vote_and_a_median_at_the_target_has_reached_it() -> None:
    undefined, reached = with_metrics(validation_auc=math.nan), with_metrics(validation_auc=0.75)
    result, _ = run(make_plan(rounds=3, patience=1), dict.fromkeys(SITES, undefined))
    assert result.ended == "all rounds"
    some = dict.fromkeys(SITES[:5], undefined) | dict.fromkeys(SITES[5:], reached)
    result, _ = run(make_plan(rounds=3, target_auc=0.75), some)
    assert result.ended == "target AUC reached in round 1"


def test_patience_ends_a_run_that_no_longer_improves() -> None:
    standing_still = with_array(np.zeros(15, np.float32))
    result, _ = run(make_plan(rounds=10, patience=2), dict.fromkeys(SITES, standing_still))
    assert result.ended == "no better validation AUC for 2 rounds, at round 3"


def of_round(values: Sequence[float]) -> Sabotage:
    """Return a sabotage that evaluates the payload of round r as values[r - 1], whenever it is asked for."""

    def alter(answer: Message, request: Message) -> Message:
        asked = decode_request(request, request.metadata.message_type, LAYOUT)
        value = values[asked.payload_round - 1] if asked.payload_round else math.nan
        name = "validation_auc" if asked.phase == "train" else "auc"
        return with_metrics(**{name: value})(answer, request)

    return alter


def listening(asked: list[RoundRequest]) -> type[LocalGrid]:
    class ListeningGrid(LocalGrid):
        def send_and_receive(self, messages, *, timeout=None):  # type: ignore[no-untyped-def]
            messages = list(messages)
            asked.append(decode_request(messages[0], messages[0].metadata.message_type, LAYOUT))
            return super().send_and_receive(messages, timeout=timeout)

    return ListeningGrid


@pytest.mark.parametrize(
    ("aucs", "tolerance", "patience", "chosen", "trained"),
    [
        ([0.6, 0.8, 0.7, 0.75, 0.7], 0.0, None, 2, 5),
        ([0.6, 0.8, 0.7, 0.75, 0.7], 0.0, 2, 2, 5),
        ([0.6, 0.8, 0.7, 0.75, 0.7], 0.0625, None, 4, 5),
        ([0.6, 0.8, 0.7, 0.75, 0.7], 0.0625, 2, 4, 5),
        ([0.6, 0.7, 0.8, 0.8, 0.9], 0.0, None, 5, 5),
        ([0.8, 0.8, 0.7, 0.9, 0.9], 0.0, 3, 5, 5),
        ([0.8, 0.8, 0.7, 0.9, 0.9], 0.0, 2, 2, 4),
        ([0.8, 0.7, 0.9, 0.5, 0.875], 0.25, None, 5, 5),
        ([math.nan] * 5, 0.0, 2, 5, 5),
    ],
)
def test_the_latest_of_the_good_rounds_is_kept_and_every_site_hears_of_it(
    aucs: list[float], tolerance: float, patience: int | None, chosen: int, trained: int
) -> None:
    plan, asked = make_plan(rounds=5, round_tolerance=tolerance, patience=patience), []
    sabotage = dict.fromkeys(SITES, of_round(aucs))
    result, observer = run(plan, sabotage, phase=None, grid=listening(asked))
    assert result.chosen == chosen
    assert np.array_equal(result.payload, observer.payloads[chosen - 1])
    ending = asked[-1]
    assert sum(request.phase == "train" for request in asked) == trained
    if chosen == 5:
        assert (ending.phase, ending.best_round) == ("evaluate", 0)
    else:
        assert (ending.phase, ending.best_round, ending.payload_round) == ("evaluate", chosen, chosen)
    # The sites have the chosen payload, whichever way they got it.
    assert np.array_equal(ending.payload, result.payload)
    assert ending.header.round >= max(request.header.round for request in asked)
    # Each request says what the evaluations before it have shown.
    for request in asked:
        known = aucs[: max(0, request.header.round - 2)] if request.phase == "train" else []
        if known and not math.isnan(known[0]):
            assert request.best_round == ValidationCurve(tuple(known)).choose_round(tolerance)


def test_the_last_round_is_kept_if_the_run_says_so() -> None:
    aucs = of_round([0.6, 0.8, 0.7])
    result, observer = run(make_plan(rounds=3), dict.fromkeys(SITES, aucs), phase=None)
    assert result.chosen == 3
    assert np.array_equal(result.payload, observer.payloads[-1])


def test_the_catalogue_and_the_aggregators_are_one_list() -> None:
    assert set(AGGREGATORS) == set(STRATEGIES)
    for info in STRATEGIES.values():
        assert info.paper
        assert info.summary.endswith(".")
        assert info.caveat.endswith(".")


def test_an_unknown_strategy_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="choose one of bulyan"):
        create_aggregator(dataclasses.replace(make_plan(), strategy="fedmagic"))
