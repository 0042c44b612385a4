"""One exchange with the sites: send a request to each site, check the replies, and record missing and refused ones."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from ept_fed.catalog.strategies import STRATEGIES
from ept_fed.flower.messages import encode_request
from ept_fed.flower.transport import count_bytes
from ept_fed.protocol.layout import PayloadMismatchError, Vector
from ept_fed.protocol.messages import MessageRefusedError, Phase, RoundReply, RoundRequest, clean_text
from ept_fed.reports.run.round_record import Refusal
from ept_fed.run_plan.plan import Plan
from server.rounds.reply_checks import Accepted, admit

__all__ = ["Exchange", "Traffic", "find_sender"]

_log = logging.getLogger(__name__)


@dataclass
class Traffic:
    """Serialised bytes of one site's messages."""

    sent: int = 0
    received: int = 0


class Exchange:
    """An exchange of one round with the given nodes, with its refusals and its traffic.

    Attributes:
        refused: refused replies, replies of nodes that were not selected, and sites that did not answer in time.
        traffic: bytes by site, including refused replies.
    """

    def __init__(
        self,
        grid: Grid,
        plan: Plan,
        nodes: Mapping[int, str],
        round_number: int,
        on_site: Callable[[int, str, Phase, Mapping[str, float]], None],
        *,
        best_round: int = 0,
    ) -> None:
        """Prepare an exchange of a round.

        Args:
            grid: Flower's connection to the sites.
            plan: plan of the run.
            nodes: site names by node id.
            round_number: number of the round.
            on_site: receives the metrics of every accepted reply.
            best_round: see `RoundRequest`.
        """
        self.refused: list[Refusal] = []
        self.traffic = {name: Traffic() for name in nodes.values()}
        self._grid, self._plan, self._nodes, self._round, self._on_site = grid, plan, nodes, round_number, on_site
        self._best_round = best_round

    def run(
        self, phase: Phase, payload: Vector, corrections: Mapping[str, Vector | None] | None = None
    ) -> list[Accepted]:
        """Send the phase's request and return the accepted replies, sorted by site.

        `corrections` are the strategy's correction vectors by site.
        """
        request = RoundRequest(
            header=self._plan.header(self._round),
            phase=phase,
            rounds=self._plan.rounds,
            payload=payload,
            split="train" if phase == "train" else "validation",
            settings=self._plan.training if phase == "train" else None,
            wants_gradient=phase == "train" and STRATEGIES[self._plan.strategy].wants_gradient,
            best_round=self._best_round,
        )
        # Sites without a correction share one record, so it is built and hashed once.
        shared, own = encode_request(request), corrections or {}
        messages = []
        for node, name in self._nodes.items():
            correction = own.get(name)
            content = shared if correction is None else encode_request(replace(request, correction=correction))
            messages.append(self._address(content, phase, node))
        waiting = set(self._nodes)
        accepted: list[Accepted] = []
        for reply in self._grid.send_and_receive(messages, timeout=self._plan.deadline):
            node = find_sender(reply, messages)
            if node not in waiting:
                reason = "answered twice" if node in self._nodes else "was not selected"
                self.refused.append(Refusal(self._nodes.get(node, str(node)), phase, reason))
                continue
            waiting.discard(node)
            admitted = self._admit(self._nodes[node], reply, request)
            if admitted is not None:
                accepted.append((self._nodes[node], admitted))
        self.refused += [Refusal(self._nodes[node], phase, "did not answer in time") for node in sorted(waiting)]
        return sorted(accepted, key=lambda item: item[0])

    def _address(self, content: RecordDict, phase: Phase, node: int) -> Message:
        message = Message(content, node, phase, group_id=str(self._round), ttl=self._plan.deadline)
        self.traffic[self._nodes[node]].sent += count_bytes(message)
        return message

    def _admit(self, site: str, message: Message, request: RoundRequest) -> RoundReply | None:
        self.traffic[site].received += count_bytes(message)
        try:
            reply = admit(site, message, request, self._plan)
        except (MessageRefusedError, PayloadMismatchError) as refusal:
            reason = clean_text(str(refusal))
            _log.warning("%s: %s", site, reason)
            self.refused.append(Refusal(site, request.phase, reason))
            return None
        self._on_site(self._round, site, request.phase, reply.metrics)
        return reply


def find_sender(reply: Message, questions: Sequence[Message]) -> int:
    """Return the id of the node that a reply belongs to.

    For an absent node, the SuperLink answers with an error under its own id. The node is then the receiver of the
    request that the error replies to.
    """
    asked = reply.metadata.reply_to_message_id
    if asked and reply.has_error():
        for question in questions:
            if question.metadata.message_id == asked:
                return question.metadata.dst_node_id
    return reply.metadata.src_node_id
