"""Test sites that only add numbers, without model and images, and the ways in which a bad site can alter its reply."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from ept_fed.catalog.strategies import resolve_options
from ept_fed.config.experiment import TrainingSettings
from ept_fed.flower.messages import decode_request, encode_reply
from ept_fed.flower.records import encode_frame_record, read_frame_record
from ept_fed.protocol.frames import decode_frame
from ept_fed.protocol.layout import PayloadLayout, Vector
from ept_fed.protocol.messages import EVALUATE_METRICS, TRAIN_METRICS, Phase, RoundReply
from ept_fed.reports.run.round_record import RoundRecord
from ept_fed.run_plan.plan import Plan
from server.app import create_server_app
from server.rounds.loop import FederationResult
from simulations.engine.local_grid import LocalGrid
from tests.frames_by_hand import frame_of, open_frame

LAYOUT = PayloadLayout((("sinks", (3, 5)),))
SITES = tuple(f"site-{number:02d}" for number in range(1, 10))
BAD = "site-05"
EXAMPLES = {site: 10 * (number + 1) for number, site in enumerate(SITES)}
Sabotage = Callable[[Message, Message], Message | None]


def make_plan(sites: tuple[str, ...] = SITES, strategy: str = "fedavg", **changes: object) -> Plan:
    plan = Plan(
        run="r",
        seed=0,
        backbone_digest="digest",
        layout=LAYOUT,
        initial=np.zeros(15, np.float32),
        rounds=2,
        sites=sites,
        training=TrainingSettings(),
        strategy=strategy,
        options=resolve_options(strategy, {}),
        deadline=0.1,
    )
    return dataclasses.replace(plan, **changes)


def step_of(site: str) -> Vector:
    """Return the step that a site adds in each round, which has a different direction for each site."""
    return np.random.default_rng(SITES.index(site)).normal(1, 0.2, 15).astype(np.float32)


def auc_of(payload: Vector) -> float:
    """Return an AUC that increases with the payload."""
    return float(1 / (1 + np.exp(-payload.astype(np.float64).mean())))


def adding_app(sabotage: Mapping[str, Sabotage], phase: Phase | None = "train") -> ClientApp:
    """Return sites that add their own step to the payload; a sabotaged site alters or drops its replies.

    This is done in one phase, or in both for None.
    """
    app = ClientApp()

    def finish(answer: Message, message: Message, site: str, this: Phase) -> Message:
        if site not in sabotage or phase not in (this, None):
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
    plan: Plan,
    sabotage: Mapping[str, Sabotage] | None = None,
    phase: Phase | None = "train",
    grid: type[LocalGrid] = LocalGrid,
) -> tuple[FederationResult, Observer]:
    results: list[FederationResult] = []
    observer = Observer()
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})
    app = adding_app(sabotage or {}, phase)
    create_server_app(plan, observer, results.append)(grid(app, plan.sites), context)
    return results[0], observer


def mean_step(*sites: str) -> Vector:
    steps, weights = [step_of(site) for site in sites], [EXAMPLES[site] for site in sites]
    return np.average(steps, axis=0, weights=weights)


def grid_run(grid: type[LocalGrid], plan: Plan) -> tuple[FederationResult, Observer]:
    return run(plan, grid=grid)


def without_sites(*absent: str) -> type[LocalGrid]:
    """Return a grid on which these sites never came online."""

    class Grid(LocalGrid):
        def get_nodes(self):  # type: ignore[no-untyped-def]
            return [node for node in super().get_nodes() if node.name not in absent]

    return Grid


def alter_frame(change: Callable[[dict[str, Any], bytes], bytes]) -> Sabotage:
    """Return a sabotage; `change` gets header and arrays of a valid reply, alters the header and returns the arrays."""

    def alter(answer: Message, request: Message) -> Message:
        document, body = open_frame(read_frame_record(answer))
        altered = change(document, body)
        return Message(encode_frame_record(frame_of(document, altered)), reply_to=request)

    return alter


def with_array(value: np.ndarray) -> Sabotage:
    def change(document: dict[str, Any], body: bytes) -> bytes:
        sizes = {**document["arrays"], "payload": value.nbytes // 4}
        # A gradient comes after the payload.
        rest = body[4 * document["arrays"].get("payload", 0) :]
        document["arrays"] = sizes
        return value.tobytes() + rest

    return alter_frame(change)


def with_metrics(**changes: float) -> Sabotage:
    def change(document: dict[str, Any], body: bytes) -> bytes:
        if "examples" in changes:
            document["examples"] = changes["examples"]
        metrics = {name: value for name, value in changes.items() if name != "examples"}
        document["metrics"] |= {name: None if math.isnan(value) else value for name, value in metrics.items()}
        return body

    return alter_frame(change)


def with_config(**changes: str | int) -> Sabotage:
    def change(document: dict[str, Any], body: bytes) -> bytes:
        document["header"] |= changes
        return body

    return alter_frame(change)


def without(part: str) -> Sabotage:
    def change(document: dict[str, Any], body: bytes) -> bytes:
        del document[part]
        return body

    return alter_frame(change)


def without_payload(answer: Message, request: Message) -> Message:
    reply = decode_frame(read_frame_record(answer))
    assert isinstance(reply, RoundReply)
    return encode_reply(dataclasses.replace(reply, payload=None), request)


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
    "no payload": without_payload,
    "no arrays": without("arrays"),
    "no metrics": without("metrics"),
    "no header": without("header"),
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
