"""The round loop over LocalGrid with sites that only add numbers: no model, no images."""

import logging
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from ept_fed.flower import EXAMPLES_KEY, decode_request, encode_reply
from ept_fed.protocol.layout import PayloadLayout, Vector
from ept_fed.protocol.messages import EVALUATE_METRICS, Phase, RoundReply
from ept_fed.protocol.plan import Plan
from server.app import create_server_app
from server.rounds import FederationResult, RoundRecord
from server.strategies import create_strategy
from simulations.local_grid import LocalGrid, run_locally

LAYOUT = PayloadLayout((("sinks", (3, 5)),))
SITES = ("north", "east", "south")
STEP = {"north": 1.0, "east": 2.0, "south": 6.0}
EXAMPLES = {"north": 10, "east": 20, "south": 30}
Sabotage = Callable[[Message, Message], Message | None]


@pytest.fixture(autouse=True)
def _quiet_flower() -> None:
    logging.getLogger("flwr").setLevel(logging.ERROR)


def plan(rounds: int = 2) -> Plan:
    return Plan("r", 0, "digest", LAYOUT, np.zeros(15, np.float32), rounds, "fedavg", "{}")


def adding_app(sabotage: Mapping[str, Sabotage]) -> ClientApp:
    """Sites that add their own step to the payload; a sabotaged one alters or drops its train reply."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        site = str(context.node_config["site"])
        request = decode_request(message, "train", LAYOUT)
        reply = RoundReply(
            request.header, "train", request.payload + STEP[site], EXAMPLES[site], {"loss": 1.0, "seconds": 0.0}
        )
        answer = encode_reply(reply, message)
        if site in sabotage:
            altered = sabotage[site](answer, message)
            if altered is None:
                raise RuntimeError("/data/patient_007.dcm")
            return altered
        return answer

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        request = decode_request(message, "evaluate", LAYOUT)
        metrics = dict.fromkeys(EVALUATE_METRICS, float(request.payload.mean()))
        return encode_reply(RoundReply(request.header, "evaluate", None, 5, metrics), message)

    return app


class Observer:
    def __init__(self) -> None:
        self.payloads: list[Vector] = []
        self.records: list[RoundRecord] = []

    def on_site(self, round_number: int, site: str, phase: Phase, metrics: Mapping[str, float]) -> None:
        pass

    def on_round(self, record: RoundRecord, payload: Vector) -> None:
        self.records.append(record)
        self.payloads.append(payload)


def run(sabotage: Mapping[str, Sabotage] | None = None, rounds: int = 2) -> tuple[FederationResult, Observer]:
    results: list[FederationResult] = []
    observer = Observer()
    run_locally(create_server_app(plan(rounds), observer, results.append), adding_app(sabotage or {}), SITES)
    return results[0], observer


def mean_step(*sites: str) -> float:
    return float(np.average([STEP[site] for site in sites], weights=[EXAMPLES[site] for site in sites]))


def test_fedavg_weighs_sites_by_their_examples() -> None:
    result, observer = run()
    np.testing.assert_allclose(result.payload, 2 * mean_step(*SITES), rtol=1e-6)
    assert result.payload.dtype == np.float32
    assert [record.round for record in observer.records] == [1, 2]
    assert result.aggregated_anything
    np.testing.assert_allclose(observer.payloads[0], mean_step(*SITES), rtol=1e-6)


def test_sites_are_averaged_in_the_order_of_their_names() -> None:
    result, _ = run()
    assert result.rounds[0].aggregated == ("east", "north", "south")


def test_the_average_is_what_sites_evaluate() -> None:
    _, observer = run(rounds=1)
    for exchange in observer.records[0].sites.values():
        assert exchange.evaluation["auc"] == pytest.approx(mean_step(*SITES))


def test_every_byte_is_counted_in_both_directions() -> None:
    _, observer = run(rounds=1)
    for exchange in observer.records[0].sites.values():
        assert 4 * 15 < exchange.train_bytes_received < exchange.bytes_received
        assert exchange.bytes_sent > 2 * 4 * 15


def with_array(value: np.ndarray) -> Sabotage:
    def alter(answer: Message, request: Message) -> Message:
        answer.content["arrays"] = ArrayRecord({"payload": Array(value)})
        return answer

    return alter


def with_examples(count: int) -> Sabotage:
    def alter(answer: Message, request: Message) -> Message:
        metrics = dict(answer.content["metrics"])
        answer.content["metrics"] = MetricRecord({**metrics, EXAMPLES_KEY: count})
        return answer

    return alter


SABOTAGES: dict[str, Sabotage] = {
    "raises": lambda answer, request: None,
    "error": lambda answer, request: Message(Error(code=7, reason="x"), reply_to=request),
    "empty": lambda answer, request: Message(RecordDict(), reply_to=request),
    "NaN": with_array(np.full(15, np.nan, np.float32)),
    "short": with_array(np.zeros(14, np.float32)),
    "broadcastable": with_array(np.zeros(1, np.float32)),
    "float64": with_array(np.zeros(15)),
    "no examples": with_examples(0),
    "negative examples": with_examples(-10),
    "absurd examples": with_examples(10**12),
}


@pytest.mark.parametrize("sabotage", SABOTAGES.values(), ids=SABOTAGES)
def test_one_bad_site_changes_nothing_for_the_others(sabotage: Sabotage) -> None:
    result, observer = run({"east": sabotage})
    np.testing.assert_allclose(result.payload, 2 * mean_step("north", "south"), rtol=1e-6)
    for record in observer.records:
        assert record.aggregated == ("north", "south")
        assert [(refusal.site, refusal.phase) for refusal in record.refused] == [("east", "train")]
        assert "patient" not in str(record.to_json())


def test_a_run_that_averaged_nothing_keeps_its_prompts_and_has_failed() -> None:
    bad = SABOTAGES["NaN"]
    result, observer = run(dict.fromkeys(SITES, bad))
    assert not result.aggregated_anything
    assert not result.payload.any()
    assert len(observer.records[0].refused) == 3


class SilentGrid(LocalGrid):
    """A grid on which one site never answers and a stranger does."""

    def send_and_receive(self, messages, *, timeout=None):  # type: ignore[no-untyped-def]
        for message in super().send_and_receive(messages, timeout=timeout):
            if message.metadata.src_node_id == 1:
                message.metadata.__dict__["_src_node_id"] = 99
            yield message


def test_a_silent_site_and_a_stranger_are_named() -> None:
    results: list[FederationResult] = []
    observer = Observer()
    app = create_server_app(plan(1), observer, results.append)
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})
    app(SilentGrid(adding_app({}), SITES), context)
    reasons = {(refusal.site, refusal.reason) for refusal in observer.records[0].refused}
    assert reasons == {("north", "did not answer"), ("99", "was not asked")}
    np.testing.assert_allclose(results[0].payload, mean_step("east", "south"), rtol=1e-6)


def test_an_unknown_strategy_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="choose one of fedavg"):
        create_strategy("fedmagic", 3)
