"""Sites that send a valid reply at once without a model, so that a round takes only the engine's own time.

The module contains the apps of the benchmark: a ClientApp, and a ServerApp that times rounds under the runtime in which
it is started.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

# Grid.get_nodes returns this type, which flwr 1.41 exports nowhere else.
from flwr.proto.node_pb2 import NodeInfo  # isort: skip

from ept_fed.config.experiment import TrainingSettings
from ept_fed.flower.messages import decode_request, encode_reply
from ept_fed.protocol.layout import PayloadLayout, Vector
from ept_fed.protocol.messages import Phase, RoundReply, metric_keys
from ept_fed.reports.run.round_record import RoundRecord
from ept_fed.run_plan.plan import Plan
from server.app import create_server_app
from server.rounds.loop import FederationResult
from simulations.benches.paired_timing import time_paired
from simulations.engine.local_grid import LocalGrid
from simulations.flower.named_grid import NamedGrid

__all__ = ["LAYOUT", "LOCAL", "RUNTIME", "client_app", "name_sites", "run_federation", "server_app"]

LAYOUT = PayloadLayout((("sinks", (12, 197)),))  # ViT-B/16 at 224 px
LOCAL, RUNTIME = "LocalGrid", "Flower's simulation runtime"


def make_client_app() -> ClientApp:
    """Return a ClientApp whose sites send back the payload they received."""
    app = ClientApp()

    def answer(message: Message, phase: Phase) -> Message:
        request = decode_request(message, phase, LAYOUT)
        payload = request.payload if phase == "train" else None
        reply = RoundReply(request.header, phase, payload, 10, dict.fromkeys(metric_keys(phase), 1.0))
        return encode_reply(reply, message)

    @app.train()
    def train(message: Message, _context: Context) -> Message:
        return answer(message, "train")

    @app.evaluate()
    def evaluate(message: Message, _context: Context) -> Message:
        return answer(message, "evaluate")

    return app


client_app = make_client_app()
server_app = ServerApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Time LocalGrid and this grid alternately, and write the times as JSON to `out`."""
    rounds, turns = int(context.run_config["rounds"]), int(context.run_config["turns"])
    sites = name_sites(int(context.run_config["sites"]))
    numbered = _NumberedGrid(grid, sites)
    local = LocalGrid(client_app, sites, run_id=context.run_id)
    calls: Mapping[str, Callable[[], object]] = {
        LOCAL: lambda: run_federation(local, sites, rounds),
        RUNTIME: lambda: run_federation(numbered, sites, rounds),
    }
    timings = time_paired(calls, turns=turns, warm_up=1)
    Path(str(context.run_config["out"])).write_text(json.dumps({name: vars(t) for name, t in timings.items()}))


def name_sites(count: int) -> list[str]:
    """Return `count` site names in sorted order."""
    return [f"site-{number:04d}" for number in range(count)]


def run_federation(grid: Grid, sites: Sequence[str], rounds: int) -> None:
    """Run `rounds` rounds of FedAvg and the evaluation after the last one.

    Raises:
        RuntimeError: if a reply was refused or is missing, because the time of such a run means nothing.
    """
    plan = Plan(
        run="noop",
        seed=0,
        backbone_digest="none",
        layout=LAYOUT,
        initial=np.zeros(LAYOUT.size, np.float32),
        rounds=rounds,
        sites=tuple(sites),
        training=TrainingSettings(),
    )
    results: list[FederationResult] = []
    app = create_server_app(plan, _Silent(), results.append)
    app(grid, Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={}))
    refused = [refusal for record in results[0].rounds for refusal in record.refused]
    if refused or len(results[0].rounds) != rounds:
        raise RuntimeError(f"{len(refused)} replies were refused, the first because it {refused[0].reason}")


class _NumberedGrid(NamedGrid):
    """Flower's own Grid, which waits for replies in its own way; only site names are given to its nodes, by node id."""

    def __init__(self, grid: Grid, sites: Sequence[str]) -> None:
        super().__init__(grid, deadline=math.inf)
        self._sites = sites

    def get_nodes(self) -> list[NodeInfo]:
        nodes = sorted(node.node_id for node in self._grid.get_nodes())
        return [NodeInfo(node_id=node, name=site) for node, site in zip(nodes, self._sites, strict=True)]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        yield from self._grid.send_and_receive(messages, timeout=timeout)


class _Silent:
    def on_site(self, round_number: int, site: str, phase: Phase, metrics: Mapping[str, float]) -> None:
        """Do nothing."""

    def on_payload(self, round_number: int, payload: Vector, seconds: float) -> None:
        """Do nothing."""

    def on_round(self, record: RoundRecord) -> None:
        """Do nothing."""
