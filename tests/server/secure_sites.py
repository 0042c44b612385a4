"""Test sites that add numbers under secure aggregation, and faults that can occur at each stage."""

from collections.abc import Callable, Mapping
from functools import partial

from cryptography import x509
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.site.secure_aggregation import Credentials, SecureRounds
from ept_fed.flower.messages import decode_request, encode_reply
from ept_fed.flower.records import encode_frame_record, read_frame_record
from ept_fed.privacy.secure_aggregation.round_session import weigh_site
from ept_fed.protocol.frames import decode_frame, encode_frame
from ept_fed.protocol.layout import Vector
from ept_fed.protocol.messages import EVALUATE_METRICS, TRAIN_METRICS, RoundReply
from ept_fed.protocol.stage_messages import StageReply, StageRequest
from ept_fed.run_plan.plan import Plan
from server.app import create_server_app
from server.rounds.loop import FederationResult
from simulations.engine.local_grid import LocalGrid
from tests.server.adding_sites import EXAMPLES, LAYOUT, Observer, auc_of, make_plan, step_of

# (request, answer of a site) -> the answer that is sent instead, or None if the site has dropped out
Fault = Callable[[StageRequest, StageReply], StageReply | None]
Certified = tuple[x509.Certificate, Mapping[str, Credentials]]


def make_secure_plan(sites: tuple[str, ...], **changes: object) -> Plan:
    return make_plan(sites, secure_sites=sites, norm_bound=None, **changes)


def masking_app(
    plan: Plan, certified: Certified, faults: Mapping[str, Fault], seen: list[bytes], heavier: Mapping[str, int]
) -> ClientApp:
    """Return sites that keep their update until the masked input; all their answers are added to `seen`.

    The sites in `heavier` mask a weight that differs from the one of their images.
    """
    app = ClientApp()
    rounds = {name: SecureRounds(name, partial(certified[1].__getitem__, name)) for name in plan.sites}
    updates: dict[tuple[str, int], Vector] = {}
    weigh = partial(weigh_site, weights=plan.weights, weight_cap=plan.weight_cap)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        site = str(context.node_config["site"])
        request = decode_request(message, "train", LAYOUT)
        rounds[site].begin(request)
        updates[site, request.header.round] = request.payload + step_of(site)
        metrics = dict.fromkeys(TRAIN_METRICS, 1.0) | {"validation_auc": auc_of(request.payload)}
        reply = RoundReply(request.header, "train", None, EXAMPLES[site], metrics)
        seen.append(encode_frame(reply))
        return encode_reply(reply, message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        request = decode_request(message, "evaluate", LAYOUT)
        metrics = dict.fromkeys(EVALUATE_METRICS, 1.0) | {"auc": auc_of(request.payload)}
        return encode_reply(RoundReply(request.header, "evaluate", None, 5, metrics), message)

    @app.query()
    def stage(message: Message, context: Context) -> Message:
        site = str(context.node_config["site"])
        request = decode_frame(read_frame_record(message))
        assert isinstance(request, StageRequest)
        number = request.header.round
        reply = rounds[site].answer(
            request, plan.session, lambda: (updates[site, number], heavier.get(site, weigh(EXAMPLES[site])))
        )
        altered = faults[site](request, reply) if site in faults else reply
        if altered is None:
            raise RuntimeError("gone")
        seen.append(altered.content)
        return Message(encode_frame_record(encode_frame(altered)), reply_to=message)

    return app


def run_secure(
    plan: Plan,
    certified: Certified,
    faults: Mapping[str, Fault] | None = None,
    grid: type[LocalGrid] = LocalGrid,
    heavier: Mapping[str, int] | None = None,
) -> tuple[FederationResult, Observer, list[bytes]]:
    """Run a federation under secure aggregation; return its result, its observer and the bytes sent to the server."""
    results: list[FederationResult] = []
    observer, seen = Observer(), []
    server = create_server_app(plan, observer, results.append, authority=certified[0])
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})
    server(grid(masking_app(plan, certified, faults or {}, seen, heavier or {}), plan.sites), context)
    return results[0], observer, seen
