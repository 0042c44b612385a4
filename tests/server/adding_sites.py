"""Sites that only add numbers, no model and no images; and everything a bad one may do to its reply."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from ept_fed.flower import EXAMPLES_KEY, decode_request, encode_reply
from ept_fed.protocol.layout import PayloadLayout, Vector
from ept_fed.protocol.messages import EVALUATE_METRICS, TRAIN_METRICS, Phase, RoundReply
from ept_fed.protocol.plan import Plan
from ept_fed.strategies import resolve_options
from server.app import create_server_app
from server.round_record import RoundRecord
from server.rounds import FederationResult
from simulations.local_grid import LocalGrid, run_locally

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


def grid_run(grid: type[LocalGrid], plan: Plan) -> tuple[FederationResult, Observer]:
    results: list[FederationResult] = []
    observer = Observer()
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})
    create_server_app(plan, observer, results.append)(grid(adding_app({}), plan.sites), context)
    return results[0], observer


class WithoutBad(LocalGrid):
    """A grid on which the bad site never came online."""

    def get_nodes(self):  # type: ignore[no-untyped-def]
        return [node for node in super().get_nodes() if node.name != BAD]


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
