"""The secure aggregation of one round over a grid: five exchanges after training, and the server has the mean alone."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from cryptography import x509
from flwr.app import Message
from flwr.serverapp import Grid

from ept_fed.flower.records import encode_frame_record, read_frame_record
from ept_fed.flower.transport import count_bytes
from ept_fed.privacy.secure_aggregation.round_session import digest_start, weigh_site
from ept_fed.privacy.secure_aggregation.server import SecureAggregationServer, SecureMean
from ept_fed.privacy.secure_aggregation.session import AggregationAbandonedError
from ept_fed.protocol.frames import decode_frame, encode_frame
from ept_fed.protocol.layout import Vector
from ept_fed.protocol.messages import MessageRefusedError, clean_text
from ept_fed.protocol.stages import STAGES, Stage, StageReply, StageRequest
from ept_fed.reports.run.round_record import Refusal
from ept_fed.run_plan.plan import Plan
from server.rounds.admission import Accepted
from server.rounds.exchange import Traffic, find_sender
from server.strategies.base import Update

__all__ = ["Collected", "SecureExchange"]

_log = logging.getLogger(__name__)

# A stage takes a site no training: whoever is silent for so long is not waited for by all the others.
_STAGE_SECONDS = 300.0


@dataclass(frozen=True)
class Collected:
    """The updates of a round, and whose they are.

    Attributes:
        updates: one per site, or a single one that stands for their weighted mean.
        sites: whose they are, sorted.
        refused: who was left out of the sum, and why.
        abandoned: why there is no sum; empty if there is one.
        update_bytes: serialised bytes of each update, where it came apart from the train reply.
    """

    updates: Sequence[Update]
    sites: tuple[str, ...]
    refused: Sequence[Refusal] = ()
    abandoned: str = ""
    update_bytes: Mapping[str, int] = field(default_factory=dict)


def _max_numbers(plan: Plan) -> int:
    """Return as how many floats a stage's answer may be long: words of eight bytes, and shares for all sites."""
    return 2 * (plan.layout.size + 1) + 4096 * len(plan.secure_sites)


class SecureExchange:
    """Leads the sites that have trained through the stages, and keeps who was left out on the way.

    Attributes:
        refused: sites that were silent or refused, and why.
        update_bytes: serialised bytes of each site's masked input.
    """

    def __init__(
        self,
        grid: Grid,
        plan: Plan,
        nodes: Mapping[int, str],
        round_number: int,
        start: Vector,
        traffic: Mapping[str, Traffic],
        *,
        authority: x509.Certificate,
        now: datetime,
    ) -> None:
        """Prepare a round.

        Args:
            grid: Flower's connection to the sites.
            plan: of the run.
            nodes: names of those who were asked to train, by node id.
            round_number: 1-based.
            start: the payload that the round began with.
            traffic: by site; what this exchange sends and receives is added.
            authority: whose certificates the sites sign with.
            now: for the certificates' dates.
        """
        self.refused: list[Refusal] = []
        self._grid, self._plan, self._nodes, self._round = grid, plan, nodes, round_number
        self._traffic = traffic
        session = plan.session(round_number, digest_start(start, plan.training))
        self._leader = SecureAggregationServer(session, authority=authority, now=now)
        self.update_bytes: dict[str, int] = {}

    def collect(self, trained: Sequence[Accepted]) -> Collected:
        """Return the mean of the updates of sites whose train replies were sound, as one update."""
        try:
            mean = self.run([site for site, _ in trained])
        except AggregationAbandonedError as abandoned:
            return Collected((), (), self.refused, f"secure aggregation: {abandoned}")
        stated = {
            site: weigh_site(reply.examples, self._plan.weights, self._plan.weight_cap) for site, reply in trained
        }
        if mean.weight != sum(stated[site] for site in mean.sites):
            # One site with a weight of its own making would be most of the mean.
            return Collected((), (), self.refused, "secure aggregation: the weights summed are not those stated")
        # Strategies that need no more than the mean look at neither loss nor steps.
        update = Update("the sum", mean.mean, mean.weight, loss=0.0, steps=1)
        return Collected((update,), mean.sites, self.refused, update_bytes=self.update_bytes)

    def run(self, trained: Collection[str]) -> SecureMean:
        """Return the weighted mean of the updates of the sites that stay to the end.

        Args:
            trained: names of the sites whose train replies were sound.

        Raises:
            AggregationAbandonedError: if too few stay, or the sum cannot be unmasked.
        """
        requests = dict.fromkeys(sorted(trained), b"")
        for stage in STAGES:
            self._ask(stage, requests)
            if stage != STAGES[-1]:
                requests = self._leader.advance()
        mean = self._leader.finish()
        # A wrong share shows only when a secret is put together from it.
        known = {refusal.site for refusal in self.refused}
        self.refused += [
            Refusal(site, "secure aggregation", reason)
            for site, reason in self._leader.refused.items()
            if site not in known
        ]
        return mean

    def _ask(self, stage: Stage, requests: Mapping[str, bytes]) -> None:
        header, patience = self._plan.header(self._round), min(self._plan.deadline, _STAGE_SECONDS)
        messages = []
        waiting = {node: name for node, name in self._nodes.items() if name in requests}
        for node, name in waiting.items():
            content = encode_frame_record(encode_frame(StageRequest(header, stage, requests[name])))
            message = Message(content, node, "query", group_id=str(self._round), ttl=patience)
            self._traffic[name].sent += count_bytes(message)
            messages.append(message)
        for reply in self._grid.send_and_receive(messages, timeout=patience):
            site = waiting.pop(find_sender(reply, messages), None)
            if site is None:
                continue
            self._traffic[site].received += count_bytes(reply)
            try:
                frame = decode_frame(read_frame_record(reply, numbers=_max_numbers(self._plan)))
                if not isinstance(frame, StageReply) or frame.stage != stage:
                    raise MessageRefusedError(f"it answered something else than its {stage}")
                frame.header.require(header)
                self._leader.take(site, frame.content)
            except MessageRefusedError as refusal:
                self._leave_out(site, stage, clean_text(str(refusal)))
            except Exception:  # noqa: BLE001 - whatever one site's bytes drive a parser to, the round goes on
                _log.exception("%s: its %s could not be read", site, stage)
                self._leave_out(site, stage, "it cannot be read")
            else:
                if stage == "masked input":
                    self.update_bytes[site] = count_bytes(reply)
        for site in waiting.values():
            self._leave_out(site, stage, "did not answer in time")

    def _leave_out(self, site: str, stage: Stage, reason: str) -> None:
        _log.warning("%s: secure aggregation, %s: %s", site, stage, reason)
        self.refused.append(Refusal(site, "secure aggregation", f"{stage}: {reason}"))
