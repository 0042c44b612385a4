"""Rounds under secure aggregation: the server gets the mean despite dropouts, and never a single update."""

import dataclasses
import logging
from collections import Counter
from unittest.mock import Mock

import numpy as np
import pytest

from client.site.secure_aggregation import SecureRounds
from ept_fed.catalog.strategies import STRATEGIES, resolve_options
from ept_fed.config.experiment import FederationSettings
from ept_fed.errors import InputRefusedError
from ept_fed.flower.messages import decode_request, encode_request
from ept_fed.flower.transport import count_bytes
from ept_fed.privacy.secure_aggregation.messages import Kind
from ept_fed.protocol.messages import MessageRefusedError, RoundRequest
from ept_fed.protocol.stage_messages import STAGES, Stage, StageReply, StageRequest
from ept_fed.run_plan.plan import Plan
from ept_fed.validation.experiment import check_sites
from ept_fed.validation.secure_aggregation import validate_secure_aggregation
from server.strategies.base import Update
from server.strategies.registry import create_aggregator
from simulations.engine.local_grid import LocalGrid
from simulations.engine.throwaway_certificates import certify_sites
from tests.server.adding_sites import EXAMPLES, LAYOUT, SITES, make_plan, mean_step, run, step_of
from tests.server.secure_sites import Certified, Fault, make_secure_plan, run_secure

STEP = 2.0**-24
FIVE = SITES[:5]


@pytest.fixture(scope="module")
def certified() -> Certified:
    return certify_sites(SITES)


@pytest.mark.parametrize("weights", [("examples", None), ("uniform", None), ("capped", 25)], ids=str)
@pytest.mark.parametrize("strategy", [name for name, info in STRATEGIES.items() if info.mean_suffices])
def test_a_secure_run_has_the_result_of_the_same_run_in_plaintext(
    certified: Certified, strategy: str, weights: tuple[str, int | None]
) -> None:
    rule = {"weights": weights[0], "weight_cap": weights[1]}
    clear = run(make_plan(FIVE, strategy, norm_bound=None, **rule))[0]
    masked, observer, _ = run_secure(make_secure_plan(FIVE, strategy=strategy, **rule), certified)
    # Adam and similar strategies divide by roots of squares, which amplifies rounding errors.
    tolerance = 8 * STEP if strategy in ("fedavg", "fedavgm", "fedprox") else 1e-4
    np.testing.assert_allclose(masked.payload, clear.payload, rtol=0, atol=tolerance)
    assert [record.aggregated for record in observer.records] == [FIVE, FIVE]
    assert all(record.refused == [] for record in observer.records)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_exactly_those_strategies_pass_that_need_no_more_than_the_mean(strategy: str) -> None:
    """These strategies give the same result for the updates of a round and for only their mean."""
    options = resolve_options(strategy, {})
    plan = make_plan(SITES, strategy, weights="uniform", options=options)
    rng = np.random.default_rng(0)
    sent = [rng.normal(size=15).astype(np.float32) for _ in SITES]
    losses, steps = rng.uniform(1, 3, len(SITES)), rng.integers(1, 9, len(SITES))
    gradient = np.ones(15, np.float32) if STRATEGIES[strategy].wants_gradient else None
    several = [
        Update(site, vector, 10, float(loss), int(count), gradient)
        for site, vector, loss, count in zip(SITES, sent, losses, steps, strict=True)
    ]
    one = [Update("the sum", np.mean(sent, axis=0, dtype=np.float64).astype(np.float32), 90, 0.0, 1, gradient)]
    refused = validate_secure_aggregation(
        FederationSettings.model_validate({"strategy": strategy, "secure_aggregation": {}, "norm_bound": None})
    )
    assert STRATEGIES[strategy].mean_suffices == (not refused)
    if STRATEGIES[strategy].mean_suffices:
        alone, together = (create_aggregator(plan).aggregate(1, plan.initial, updates) for updates in (one, several))
        np.testing.assert_allclose(alone, together, rtol=1e-4, atol=1e-5)


def gone(at: str) -> Fault:
    return lambda request, reply: None if STAGES.index(request.stage) >= STAGES.index(at) else reply


@pytest.mark.parametrize("stage", STAGES)
def test_a_site_that_leaves_at_any_stage_costs_its_own_part_at_most(certified: Certified, stage: str) -> None:
    logging.getLogger("simulations.engine.local_grid").setLevel(logging.CRITICAL)
    leaves = FIVE[1]
    result, observer, _ = run_secure(make_secure_plan(FIVE, rounds=1), certified, {leaves: gone(stage)})
    (record,) = observer.records
    # A site whose masked input has arrived is in the sum, even if it does not answer afterwards.
    kept = STAGES.index(stage) > STAGES.index("masked input")
    stay = FIVE if kept else tuple(site for site in FIVE if site != leaves)
    assert record.aggregated == stay
    np.testing.assert_allclose(result.payload, mean_step(*stay), rtol=0, atol=STEP)
    assert {refusal.site for refusal in record.refused} == {leaves}
    assert stage in record.refused[0].reason


@pytest.mark.parametrize("stage", STAGES)
def test_with_too_few_left_the_old_prompts_stay_and_the_run_goes_on(certified: Certified, stage: str) -> None:
    logging.getLogger("simulations.engine.local_grid").setLevel(logging.CRITICAL)

    def in_round_one(request: StageRequest, reply: StageReply) -> StageReply | None:
        return gone(stage)(request, reply) if request.header.round == 1 else reply

    leave = dict.fromkeys(FIVE[:2], in_round_one)
    plan = make_secure_plan(FIVE, rounds=2, secure_threshold=4)
    result, observer, _ = run_secure(plan, certified, leave)
    first, second = observer.records
    assert first.aggregated == ()
    assert "kept the old prompts: secure aggregation" in first.outcome
    assert second.aggregated == FIVE
    np.testing.assert_allclose(result.payload, mean_step(*FIVE), rtol=0, atol=STEP)


@pytest.mark.parametrize(
    "alter",
    [
        lambda request, reply: dataclasses.replace(reply, content=reply.content[:-1]),
        lambda request, reply: dataclasses.replace(reply, content=b""),
        lambda request, reply: dataclasses.replace(
            reply, stage="unmasking" if request.stage != "unmasking" else "shares"
        ),
        lambda request, reply: dataclasses.replace(reply, header=dataclasses.replace(reply.header, round=7)),
    ],
    ids=["cut", "empty", "another stage", "another round"],
)
def test_a_site_that_answers_nonsense_is_left_out_by_name(certified: Certified, alter: Fault) -> None:
    result, observer, _ = run_secure(make_secure_plan(FIVE, rounds=1), certified, {FIVE[2]: alter})
    others = tuple(site for site in FIVE if site != FIVE[2])
    assert observer.records[0].aggregated == others
    assert [refusal.site for refusal in observer.records[0].refused] == [FIVE[2]]
    np.testing.assert_allclose(result.payload, mean_step(*others), rtol=0, atol=STEP)


def test_an_answer_longer_than_any_of_its_run_is_refused_before_it_is_joined(certified: Certified) -> None:
    """Flower sends equal records once, so that a few bytes could become gigabytes."""
    swell: Fault = lambda request, reply: dataclasses.replace(reply, content=bytes(90_000))  # noqa: E731
    _, observer, _ = run_secure(make_secure_plan(FIVE, rounds=1), certified, {FIVE[2]: swell})
    (refusal,) = observer.records[0].refused
    assert refusal.site == FIVE[2]
    assert refusal.reason.endswith("this message may contain at most 82048")


def test_repeated_answers_and_those_of_strangers_change_no_stage(certified: Certified) -> None:
    class Crowded(LocalGrid):
        def send_and_receive(self, messages, *, timeout=None):  # type: ignore[no-untyped-def]
            for reply in super().send_and_receive(messages, timeout=timeout):
                yield reply
                if reply.metadata.message_type == "query":
                    yield reply
                    reply.metadata.__dict__["_src_node_id"] = 99
                    yield reply

    result, observer, _ = run_secure(make_secure_plan(FIVE, rounds=1), certified, grid=Crowded)
    assert (observer.records[0].aggregated, observer.records[0].refused) == (FIVE, [])
    np.testing.assert_allclose(result.payload, mean_step(*FIVE), rtol=0, atol=STEP)


def test_every_byte_of_every_stage_is_counted(certified: Certified) -> None:
    sent, exchanges = Counter(), []

    class CountingGrid(LocalGrid):
        def send_and_receive(self, messages, *, timeout=None):  # type: ignore[no-untyped-def]
            messages, names = list(messages), {node.node_id: node.name for node in self.get_nodes()}
            sent.update({names[one.metadata.dst_node_id]: count_bytes(one) for one in messages})
            exchanges.append(Counter())
            for reply in super().send_and_receive(messages, timeout=timeout):
                exchanges[-1][names[reply.metadata.src_node_id]] += count_bytes(reply)
                yield reply

    _, observer, _ = run_secure(make_secure_plan(FIVE, rounds=1), certified, grid=CountingGrid)
    (record,) = observer.records
    assert {site: told.bytes_sent for site, told in record.sites.items()} == sent
    assert {site: told.bytes_received for site, told in record.sites.items()} == sum(exchanges, Counter())
    masked_inputs = exchanges[1 + STAGES.index("masked input")]
    assert {site: told.train_bytes_received for site, told in record.sites.items()} == masked_inputs


def test_no_update_reaches_the_server(certified: Certified) -> None:
    """The bytes that the sites sent contain no update, neither as floats nor as fixed-point words."""
    plan = make_secure_plan(FIVE, rounds=1)
    _, _, seen = run_secure(plan, certified)
    encoding = plan.session(1, "").encoding
    for site in FIVE:
        vector = step_of(site)
        words = encoding.encode(vector, EXAMPLES[site])
        for part in (vector[:2].tobytes(), words[:1].tobytes(), words[-3:-1].tobytes()):
            assert not any(part in content for content in seen)


def train_request(plan: Plan, number: int, payload: np.ndarray | None = None) -> RoundRequest:
    start = plan.initial if payload is None else payload
    return RoundRequest(plan.header(number), "train", plan.rounds, start, "train", plan.training)


def test_an_update_leaves_once_and_no_second_session_of_its_round_gets_it(certified: Certified) -> None:
    plan = make_secure_plan(FIVE)
    rounds = SecureRounds(FIVE[0], lambda: certified[1][FIVE[0]], masked=1)

    def update() -> tuple[np.ndarray, int]:
        raise AssertionError("it was asked for the update")

    def ask(number: int, stage: Stage) -> StageReply:
        return rounds.answer(StageRequest(plan.header(number), stage, b""), plan.session, update)

    with pytest.raises(MessageRefusedError, match="has not trained round 1"):
        ask(1, "advertisement")
    rounds.begin(train_request(plan, 1))
    with pytest.raises(MessageRefusedError, match="gives none again"):
        ask(1, "advertisement")
    rounds.begin(train_request(plan, 2))
    with pytest.raises(MessageRefusedError, match="no secure aggregation of this round is open"):
        ask(2, "masked input")
    ask(2, "advertisement")
    with pytest.raises(MessageRefusedError, match="not its masked input"):
        ask(2, "masked input")


def test_an_update_that_something_refused_is_not_made_again_in_its_round(
    certified: Certified, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The noise of a refused update must not be drawn again until a check accepts it."""
    plan, made = make_secure_plan(FIVE), []
    member = Mock(advertise=lambda: b"", share_keys=lambda content: b"")
    rounds = SecureRounds(FIVE[0], lambda: certified[1][FIVE[0]])
    monkeypatch.setattr(rounds, "_join", lambda session: member)

    def update() -> tuple[np.ndarray, int]:
        made.append(1)
        raise MessageRefusedError("the gate refuses it")

    def ask(stage: Stage) -> StageReply:
        return rounds.answer(StageRequest(plan.header(1), stage, b""), plan.session, update)

    rounds.begin(train_request(plan, 1))
    ask("advertisement")
    ask("shares")
    for said in ("the gate refuses it", "gives none again"):
        with pytest.raises(MessageRefusedError, match=said):
            ask("masked input")
    with pytest.raises(MessageRefusedError, match="gives none again"):
        ask("advertisement")
    assert made == [1]


def test_sites_that_began_with_different_prompts_give_no_sum(certified: Certified) -> None:
    """Otherwise a server could predict the updates of all sites but one, and compute that one from the sum."""

    class Singling(LocalGrid):
        """A server that moves the prompts of all sites but the first."""

        def send_and_receive(self, messages, *, timeout=None):  # type: ignore[no-untyped-def]
            asked = list(messages)
            for message in asked[1:]:
                if message.metadata.message_type == "train":
                    request = decode_request(message, "train", LAYOUT)
                    moved = dataclasses.replace(request, payload=plan.initial - np.float32(0.99))
                    message.content = encode_request(moved)
            return super().send_and_receive(asked, timeout=timeout)

    plan = make_secure_plan(FIVE, rounds=1)
    _, observer, seen = run_secure(plan, certified, grid=Singling)
    (record,) = observer.records
    assert record.aggregated == ()
    assert "secure aggregation" in record.outcome
    assert {refusal.site for refusal in record.refused} == set(FIVE[1:])
    kinds = [content[5] for content in seen if content[:4] == b"EPTA"]
    assert kinds == [Kind.ADVERTISEMENT] * 5


def test_a_site_with_a_weight_of_its_own_making_gives_no_mean(certified: Certified) -> None:
    plan = make_secure_plan(FIVE, rounds=1)
    result, observer, _ = run_secure(plan, certified, heavier={FIVE[0]: 1 << 20})
    assert "the summed weights differ from the stated ones" in observer.records[0].outcome
    np.testing.assert_array_equal(result.payload, plan.initial)


def test_secure_runs_without_an_authority_are_refused() -> None:
    with pytest.raises(ValueError, match="authority"):
        run(make_secure_plan(FIVE))


@pytest.mark.parametrize(
    ("changes", "sites", "field"),
    [
        ({}, 2, "federation.secure_aggregation"),
        ({"secure_aggregation": {"threshold": 2}}, 5, "federation.secure_aggregation.threshold"),
        ({"secure_aggregation": {"threshold": 6}}, 5, "federation.secure_aggregation.threshold"),
        ({"sites_per_round": 0.5}, 6, "federation.sites_per_round"),
    ],
)
def test_what_these_sites_make_impossible_is_refused(changes: dict[str, object], sites: int, field: str) -> None:
    federation = FederationSettings.model_validate({"secure_aggregation": {}, **changes})
    assert [problem.field for problem in check_sites(federation, SITES[:sites])] == [field]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"strategy": "krum"}, "federation.strategy"),
        ({"averaging": "log_mean_exp"}, "federation.averaging"),
        ({"norm_bound": 3.0}, "federation.norm_bound"),
        ({"payload": "raw"}, "federation.payload"),
    ],
)
def test_what_needs_to_see_single_updates_is_refused(changes: dict[str, object], field: str) -> None:
    federation = FederationSettings.model_validate({"secure_aggregation": {}, "norm_bound": None, **changes})
    assert [problem.field for problem in validate_secure_aggregation(federation)] == [field]
    assert validate_secure_aggregation(federation.model_copy(update={"secure_aggregation": None})) == []


def test_a_session_of_too_few_sites_cannot_be_planned() -> None:
    with pytest.raises(InputRefusedError, match="sites"):
        make_secure_plan(FIVE[:2]).session(1, "")
