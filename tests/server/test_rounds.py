"""The round loop over LocalGrid with sites that only add numbers: no model, no images."""

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from ept_fed.flower import EXAMPLES_KEY, decode_request, encode_reply
from ept_fed.protocol.layout import PayloadLayout, Vector
from ept_fed.protocol.messages import EVALUATE_METRICS, TRAIN_METRICS, Phase, RoundReply
from ept_fed.protocol.plan import Plan
from ept_fed.strategies import STRATEGIES, resolve_options
from server.app import create_server_app
from server.round_record import RoundRecord
from server.rounds import FederationResult
from server.strategies import AGGREGATORS, create_aggregator
from simulations.local_grid import LocalGrid, run_locally

LAYOUT = PayloadLayout((("sinks", (3, 5)),))
SITES = tuple(f"site-{number:02d}" for number in range(1, 10))
BAD = "site-05"
EXAMPLES = {site: 10 * (number + 1) for number, site in enumerate(SITES)}
Sabotage = Callable[[Message, Message], Message | None]


@pytest.fixture(autouse=True)
def _quiet_flower() -> None:
    logging.getLogger("flwr").setLevel(logging.ERROR)


def make_plan(sites: tuple[str, ...] = SITES, strategy: str = "fedavg", **changes: object) -> Plan:
    plan = Plan(
        run="r",
        seed=0,
        backbone_digest="digest",
        layout=LAYOUT,
        initial=np.zeros(15, np.float32),
        rounds=2,
        sites=sites,
        training="{}",
        strategy=strategy,
        options=resolve_options(strategy, {}),
        deadline=0.1,
    )
    return dataclasses.replace(plan, **changes)


def step_of(site: str) -> Vector:
    """What a site adds each round: a direction of its own."""
    return np.random.default_rng(SITES.index(site)).normal(1, 0.2, 15).astype(np.float32)


def auc_of(payload: Vector) -> float:
    """An AUC that grows with the payload."""
    return float(1 / (1 + np.exp(-payload.astype(np.float64).mean())))


def adding_app(sabotage: Mapping[str, Sabotage], phase: Phase = "train") -> ClientApp:
    """Sites that add their own step to the payload; a sabotaged one alters or drops its reply in one phase."""
    app = ClientApp()

    def finish(answer: Message, message: Message, site: str, this: Phase) -> Message:
        if site not in sabotage or this != phase:
            return answer
        altered = sabotage[site](answer, message)
        if altered is None:
            raise RuntimeError("/data/patient_007.dcm")
        return altered

    @app.train()
    def train(message: Message, context: Context) -> Message:
        site = str(context.node_config["site"])
        request = decode_request(message, "train", LAYOUT)
        metrics = dict.fromkeys(TRAIN_METRICS, 1.0) | {"validation_auc": auc_of(request.payload)}
        gradient = -step_of(site) if request.wants_gradient else None
        step = step_of(site) - (0 if request.correction is None else 0.1 * request.correction)
        reply = RoundReply(request.header, "train", request.payload + step, EXAMPLES[site], metrics, gradient)
        return finish(encode_reply(reply, message), message, site, "train")

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        request = decode_request(message, "evaluate", LAYOUT)
        metrics = dict.fromkeys(EVALUATE_METRICS, 1.0) | {"auc": auc_of(request.payload)}
        reply = RoundReply(request.header, "evaluate", None, 5, metrics)
        return finish(encode_reply(reply, message), message, str(context.node_config["site"]), "evaluate")

    return app


class Observer:
    def __init__(self) -> None:
        self.payloads: list[Vector] = []
        self.records: list[RoundRecord] = []

    def on_site(self, round_number: int, site: str, phase: Phase, metrics: Mapping[str, float]) -> None:
        pass

    def on_payload(self, round_number: int, payload: Vector, seconds: float) -> None:
        self.payloads.append(payload)

    def on_round(self, record: RoundRecord) -> None:
        self.records.append(record)


def run(
    plan: Plan, sabotage: Mapping[str, Sabotage] | None = None, phase: Phase = "train"
) -> tuple[FederationResult, Observer]:
    results: list[FederationResult] = []
    observer = Observer()
    app = adding_app(sabotage or {}, phase)
    run_locally(create_server_app(plan, observer, results.append), app, plan.sites)
    return results[0], observer


def mean_step(*sites: str) -> Vector:
    steps, weights = [step_of(site) for site in sites], [EXAMPLES[site] for site in sites]
    return np.average(steps, axis=0, weights=weights)


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


def test_a_run_needs_one_exchange_a_round_and_one_more() -> None:
    asked: list[str] = []

    class CountingGrid(LocalGrid):
        def send_and_receive(self, messages, *, timeout=None):  # type: ignore[no-untyped-def]
            messages = list(messages)
            asked.append(messages[0].metadata.message_type)
            return super().send_and_receive(messages, timeout=timeout)

    grid_run(CountingGrid, make_plan(rounds=3))
    assert asked == ["train", "train", "train", "evaluate"]


def grid_run(grid: type[LocalGrid], plan: Plan) -> tuple[FederationResult, Observer]:
    results: list[FederationResult] = []
    observer = Observer()
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})
    create_server_app(plan, observer, results.append)(grid(adding_app({}), plan.sites), context)
    return results[0], observer


def test_every_byte_is_counted_in_both_directions() -> None:
    _, observer = run(make_plan())
    for exchange in observer.records[0].sites.values():
        assert 4 * 15 < exchange.train_bytes_received == exchange.bytes_received
        assert exchange.bytes_sent > 4 * 15
    for exchange in observer.records[1].sites.values():
        assert exchange.bytes_received > exchange.train_bytes_received


def with_array(value: np.ndarray) -> Sabotage:
    def alter(answer: Message, request: Message) -> Message:
        answer.content["arrays"] = ArrayRecord({**dict(answer.content["arrays"]), "payload": Array(value)})
        return answer

    return alter


def with_metrics(**changes: float) -> Sabotage:
    def alter(answer: Message, request: Message) -> Message:
        renamed = {EXAMPLES_KEY if key == "examples" else key: value for key, value in changes.items()}
        answer.content["metrics"] = MetricRecord({**dict(answer.content["metrics"]), **renamed})
        return answer

    return alter


def with_config(**changes: str | int) -> Sabotage:
    def alter(answer: Message, request: Message) -> Message:
        answer.content["config"] = ConfigRecord({**dict(answer.content["config"]), **changes})
        return answer

    return alter


def without(record: str) -> Sabotage:
    def alter(answer: Message, request: Message) -> Message:
        del answer.content[record]
        return answer

    return alter


def with_extra_record(answer: Message, request: Message) -> Message:
    answer.content["images"] = ArrayRecord({"patient": Array(np.zeros(3))})
    return answer


SABOTAGES: dict[str, Sabotage] = {
    "raises": lambda answer, request: None,
    "error": lambda answer, request: Message(Error(code=7, reason="x"), reply_to=request),
    "empty": lambda answer, request: Message(RecordDict(), reply_to=request),
    "NaN": with_array(np.full(15, np.nan, np.float32)),
    "infinity": with_array(np.full(15, np.inf, np.float32)),
    "short": with_array(np.zeros(14, np.float32)),
    "broadcastable": with_array(np.zeros(1, np.float32)),
    "huge": with_array(np.zeros(10**6, np.float32)),
    "float64": with_array(np.zeros(15)),
    "int": with_array(np.zeros(15, np.int32)),
    "no arrays": without("arrays"),
    "no metrics": without("metrics"),
    "no header": without("config"),
    "extra record": with_extra_record,
    "extra metric": with_metrics(age=71.0),
    "NaN loss": with_metrics(loss=float("nan")),
    "no steps": with_metrics(steps=0.0),
    "half a step": with_metrics(steps=1.5),
    "more steps than images allow": with_metrics(steps=1e18),
    "negative loss": with_metrics(loss=-1.0),
    "AUC above one": with_metrics(validation_auc=1e9),
    "negative seconds": with_metrics(seconds=-1.0),
    "no examples": with_metrics(examples=0),
    "negative examples": with_metrics(examples=-10),
    "absurd examples": with_metrics(examples=10**12),
    "another round": with_config(round=1_000),
    "another backbone": with_config(backbone_digest="other"),
    "another run": with_config(run="other"),
    "another code version": with_config(code="0.0.0"),
}


class WithoutBad(LocalGrid):
    """A grid on which the bad site never came online."""

    def get_nodes(self):  # type: ignore[no-untyped-def]
        return [node for node in super().get_nodes() if node.name != BAD]


@cache
def payload_without_bad(strategy: str) -> Vector:
    return grid_run(WithoutBad, make_plan(strategy=strategy))[0].payload


@pytest.mark.parametrize("strategy", sorted(AGGREGATORS))
@pytest.mark.parametrize("sabotage", SABOTAGES.values(), ids=SABOTAGES)
def test_one_bad_site_leaves_what_the_others_would_have_made(sabotage: Sabotage, strategy: str) -> None:
    others = tuple(site for site in SITES if site != BAD)
    attacked, observer = run(make_plan(strategy=strategy), {BAD: sabotage})
    assert np.array_equal(attacked.payload, payload_without_bad(strategy))
    for record in observer.records:
        assert record.aggregated == others
        assert {(refusal.site, refusal.phase) for refusal in record.refused} == {(BAD, "train")}
        assert "patient" not in str(record.to_json())


def test_hostile_text_reaches_no_log_unclean() -> None:
    for name in ("\x1b[2J", "\ud800" * 3, "x" * 600_000, "a\nrefused: everybody"):
        _, observer = run(make_plan(rounds=1), {BAD: with_config(code=name)})
        (reason,) = {refusal.reason for refusal in observer.records[0].refused}
        assert reason.isprintable()
        assert len(reason) <= 300


@pytest.mark.parametrize("strategy", ["fedavgm", "fedadam", "fedyogi", "fedadagrad", "qfedavg", "scaffold", "feddyn"])
def test_a_payload_that_breaks_a_strategy_costs_its_round_and_no_more(strategy: str) -> None:
    """With no bound on lengths, one finite but huge payload in the first round overflows moments or norms."""

    def once(answer: Message, request: Message) -> Message:
        if request.metadata.group_id != "1":
            return answer
        return with_array(np.full(15, 3e38, np.float32))(answer, request)

    options = resolve_options(strategy, {"server_learning_rate": 10.0} if strategy == "fedavgm" else {})
    result, observer = run(make_plan(strategy=strategy, options=options, rounds=5, norm_bound=None), {BAD: once})
    assert np.isfinite(result.payload).all()
    first, *later = observer.records
    if first.aggregated:
        # The rule itself took it in: finite, and what plain averaging without a bound means.
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


def test_a_fednova_site_that_claims_few_steps_is_outsized_per_step() -> None:
    def understate(answer: Message, request: Message) -> Message:
        return with_metrics(steps=1.0)(answer, request)

    def honest(answer: Message, request: Message) -> Message:
        return with_metrics(steps=float(math.ceil(EXAMPLES[BAD] / 8)))(answer, request)

    sabotage = dict.fromkeys(SITES, honest) | {BAD: understate}
    plan = make_plan(strategy="fednova", rounds=1, norm_bound=3.0, training='{"epochs": 4}')
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


@pytest.mark.parametrize(("quorum", "aggregates"), [(None, True), (7, True), (8, False)])
def test_below_the_quorum_the_old_prompts_stay(quorum: int | None, aggregates: bool) -> None:
    bad = dict.fromkeys(SITES[:2], SABOTAGES["NaN"])
    result, _ = run(make_plan(quorum=quorum), bad)
    assert result.aggregated_anything == aggregates


def test_below_the_strategys_assumption_the_old_prompts_stay() -> None:
    result, observer = run(make_plan(strategy="bulyan"), dict.fromkeys(SITES[:3], SABOTAGES["NaN"]))
    assert not result.aggregated_anything
    assert observer.records[0].outcome == "kept the old prompts: 6 sound replies, 7 needed"


class SilentGrid(LocalGrid):
    """A grid on which one site never answers, a stranger does, and another answers twice."""

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
        ("99", "was not asked"),
        ("site-02", "answered twice"),
    }
    np.testing.assert_allclose(result.payload, mean_step(*SITES[1:]), rtol=1e-5)


class LinkErrorGrid(LocalGrid):
    """A grid whose SuperLink answers for an absent node, under its own id 1, as Flower 1.41 does."""

    def send_and_receive(self, messages, *, timeout=None) -> Iterator[Message]:  # type: ignore[no-untyped-def]
        for request, reply in zip(messages, super().send_and_receive(messages, timeout=timeout), strict=True):
            if reply.metadata.src_node_id == 4:
                reply = Message(Error(code=3, reason="Node Unavailable"), reply_to=request)  # noqa: PLW2901
                reply.metadata.__dict__["_src_node_id"] = 1
            yield reply


def test_an_error_that_the_superlink_made_is_laid_at_the_right_door() -> None:
    result, observer = grid_run(LinkErrorGrid, make_plan(rounds=1))
    (refusal,) = [refusal for refusal in observer.records[0].refused if refusal.phase == "train"]
    assert refusal.site == "site-04"
    assert "Node Unavailable" in refusal.reason
    assert result.rounds[0].aggregated == tuple(site for site in SITES if site != "site-04")


def test_an_absent_site_delays_a_round_by_the_grace_and_not_by_the_deadline() -> None:
    started = time.monotonic()
    result, _ = grid_run(WithoutBad, make_plan(rounds=1, deadline=3600.0, grace=0.05))
    assert result.aggregated_anything
    assert time.monotonic() - started < 60


class Doubled(LocalGrid):
    """A grid on which two nodes are online under one name."""

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
    assert len(observer.records) == 2
    whole, _ = run(make_plan(rounds=3))
    stopping, first = (result.rounds[index].sites[BAD].bytes_received for index in (-1, 0))
    assert stopping == pytest.approx(2 * first, rel=0.02)
    assert first == whole.rounds[0].sites[BAD].bytes_received


def test_patience_ends_a_run_that_no_longer_improves() -> None:
    standing_still = with_array(np.zeros(15, np.float32))
    result, _ = run(make_plan(rounds=10, patience=2), dict.fromkeys(SITES, standing_still))
    assert result.ended == "no better validation AUC for 2 rounds, at round 3"


def test_the_catalogue_and_the_aggregators_are_one_list() -> None:
    assert set(AGGREGATORS) == set(STRATEGIES)
    for info in STRATEGIES.values():
        assert info.paper
        assert info.summary.endswith(".")
        assert info.caveat.endswith(".")


def test_an_unknown_strategy_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="choose one of bulyan"):
        create_aggregator(dataclasses.replace(make_plan(), strategy="fedmagic"))
