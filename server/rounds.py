"""The round loop: ask every site to train, average what is sound, ask every site to evaluate."""

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from ept_fed.flower import count_bytes, decode_reply, encode_payload, encode_request_config
from ept_fed.protocol.layout import PayloadMismatchError, Vector
from ept_fed.protocol.messages import MessageRefusedError, Phase, RoundReply, RoundRequest, Split
from ept_fed.protocol.plan import Plan

__all__ = ["FederationResult", "Refusal", "RoundObserver", "RoundRecord", "SiteExchange", "run_rounds"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refusal:
    """A reply that was left out, and why."""

    site: str
    phase: Phase
    reason: str


@dataclass
class SiteExchange:
    """What one site did in one round; bytes are serialised message sizes, both directions seen from the server."""

    examples: int = 0
    train: Mapping[str, float] = field(default_factory=dict)
    evaluation: Mapping[str, float] = field(default_factory=dict)
    bytes_sent: int = 0
    bytes_received: int = 0
    train_bytes_received: int = 0


@dataclass(frozen=True)
class RoundRecord:
    """One round, as it goes into rounds.jsonl."""

    round: int
    seconds: float
    aggregated: tuple[str, ...]
    sites: Mapping[str, SiteExchange]
    refused: tuple[Refusal, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready document with its schema version."""
        return {
            "schema": 1,
            "round": self.round,
            "seconds": round(self.seconds, 3),
            "aggregated": list(self.aggregated),
            "sites": {name: dict(vars(exchange)) for name, exchange in self.sites.items()},
            "refused": [dict(vars(refusal)) for refusal in self.refused],
        }


@dataclass(frozen=True)
class FederationResult:
    """The end of a run: the last payload and every round."""

    payload: Vector
    rounds: tuple[RoundRecord, ...]

    @property
    def aggregated_anything(self) -> bool:
        """False if no round averaged a single reply: such a run has failed, whatever the sites did."""
        return any(record.aggregated for record in self.rounds)


class RoundObserver(Protocol):
    """Whoever wants to see the run as it goes: a display, the writer of the run folder."""

    def on_site(self, round_number: int, site: str, phase: Phase, metrics: Mapping[str, float]) -> None:
        """Handle one accepted reply of a site."""

    def on_round(self, record: RoundRecord, payload: Vector) -> None:
        """Handle a finished round and the payload that it leaves."""


def run_rounds(grid: Grid, plan: Plan, strategy: Strategy, observer: RoundObserver) -> FederationResult:
    """Run a whole federation.

    Every round sends the global payload to every site, averages the sound replies in the order of the sites' names (so
    the last bits do not depend on who answered first), and evaluates the average on each site's validation split. Test
    images play no part here: each site reports on its own once the run is over.

    Args:
        grid: Flower's connection to the sites; its nodes carry the sites' names.
        plan: what to run.
        strategy: a Flower strategy; its `configure_*` and `aggregate_train` do the sampling and the arithmetic.
        observer: told about every reply and round.
    """
    names = {node.node_id: node.name or str(node.node_id) for node in grid.get_nodes()}
    payload = plan.initial
    records = []
    for round_number in range(1, plan.rounds + 1):
        started = time.perf_counter()
        exchange = _Exchange(grid, plan, strategy, names, round_number, observer)
        trained = exchange.run("train", payload, "train")
        payload = _average(strategy, round_number, trained, payload, plan)
        evaluated = exchange.run("evaluate", payload, "validation")
        record = RoundRecord(
            round=round_number,
            seconds=time.perf_counter() - started,
            aggregated=tuple(site for site, _, _ in trained),
            sites=exchange.sites,
            refused=tuple(exchange.refused),
        )
        _log.info("round %d: %d trained, %d evaluated", round_number, len(trained), len(evaluated))
        records.append(record)
        observer.on_round(record, payload)
    return FederationResult(payload, tuple(records))


_Accepted = tuple[str, RoundReply, Message]


class _Exchange:
    """One round's messages: sends a phase to the sites, and keeps what came back and what was refused."""

    def __init__(
        self,
        grid: Grid,
        plan: Plan,
        strategy: Strategy,
        names: Mapping[int, str],
        round_number: int,
        observer: RoundObserver,
    ) -> None:
        self.sites = {name: SiteExchange() for name in sorted(names.values())}
        self.refused: list[Refusal] = []
        self._grid, self._plan, self._strategy, self._names = grid, plan, strategy, names
        self._round, self._observer = round_number, observer

    def run(self, phase: Phase, payload: Vector, split: Split) -> list[_Accepted]:
        """Send one phase to the sites and return the sound replies, sorted by site."""
        request = RoundRequest(
            header=self._plan.header(self._round),
            phase=phase,
            rounds=self._plan.rounds,
            payload=payload,
            split=split,
            settings=self._plan.training if phase == "train" else "",
        )
        sent = self._address(request)
        for message in sent:
            self.sites[self._names[message.metadata.dst_node_id]].bytes_sent += count_bytes(message)
        recipients = {message.metadata.dst_node_id for message in sent}
        accepted = []
        for message in self._grid.send_and_receive(sent):
            site = self._names.get(message.metadata.src_node_id)
            if site is None or message.metadata.src_node_id not in recipients:
                self.refused.append(Refusal(str(message.metadata.src_node_id), phase, "was not asked"))
                continue
            recipients.discard(message.metadata.src_node_id)
            reply = self._admit(site, message, request)
            if reply is not None:
                accepted.append((site, reply, message))
        self.refused += [Refusal(self._names[node], phase, "did not answer") for node in sorted(recipients)]
        return sorted(accepted, key=lambda item: item[0])

    def _address(self, request: RoundRequest) -> list[Message]:
        configure = self._strategy.configure_train if request.phase == "train" else self._strategy.configure_evaluate
        arrays: ArrayRecord = encode_payload(request.payload)
        config: ConfigRecord = encode_request_config(request)
        messages: Iterable[Message] = configure(self._round, arrays, config, self._grid)
        return sorted(messages, key=lambda message: self._names[message.metadata.dst_node_id])

    def _admit(self, site: str, message: Message, request: RoundRequest) -> RoundReply | None:
        exchange = self.sites[site]
        size = count_bytes(message)
        exchange.bytes_received += size
        try:
            reply = decode_reply(message, request.phase, request.header, self._plan.layout)
        except (MessageRefusedError, PayloadMismatchError) as refusal:
            _log.warning("%s: %s", site, refusal)
            self.refused.append(Refusal(site, request.phase, str(refusal)))
            return None
        if request.phase == "train":
            exchange.examples, exchange.train, exchange.train_bytes_received = (
                reply.examples,
                reply.metrics,
                size,
            )
        else:
            exchange.evaluation = reply.metrics
        self._observer.on_site(self._round, site, request.phase, reply.metrics)
        return reply


def _average(strategy: Strategy, round_number: int, trained: list[_Accepted], payload: Vector, plan: Plan) -> Vector:
    """Return the new global payload; the old one if no reply was sound."""
    if not trained:
        return payload
    arrays, _ = strategy.aggregate_train(round_number, [message for _, _, message in trained])
    if arrays is None:
        return payload
    (array,) = arrays.values()
    averaged: Vector = np.ascontiguousarray(array.numpy(), dtype=np.float32)
    plan.layout.check(averaged)
    return averaged
