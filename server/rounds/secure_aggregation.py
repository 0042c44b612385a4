"""Secure aggregation of one round over a grid: after five exchanges the server has only the mean of the updates."""

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
from ept_fed.protocol.stage_messages import STAGES, Stage, StageReply, StageRequest
from ept_fed.reports.run.round_record import Refusal
from ept_fed.run_plan.plan import Plan
from server.rounds.exchange import Traffic, find_sender
from server.rounds.reply_checks import Accepted
from server.strategies.base import Update

__all__ = ["Collected", "SecureExchange"]

_log = logging.getLogger(__name__)

# A stage includes no training, so a site that does not answer for this time must not delay all others.
_STAGE_SECONDS = 300.0


@dataclass(frozen=True)
class Collected:
    """The updates of a round and the sites they are from.

    Attributes:
        updates: one per site, or a single one with the weighted mean of all.
        sites: names of the sites, sorted.
        refused: sites that were left out of the sum, with the reason.
        abandoned: the reason why there is no sum; empty if there is one.
        update_bytes: serialised bytes of each site's update, if it was sent separately from the train reply.
    """

    updates: Sequence[Update]
    sites: tuple[str, ...]
    refused: Sequence[Refusal] = ()
    abandoned: str = ""
    update_bytes: Mapping[str, int] = field(default_factory=dict)


def _max_numbers(plan: Plan) -> int:
    """Return the maximum length of a stage's answer in floats: room for words of eight bytes and all sites' shares."""
    return 2 * (plan.layout.size + 1) + 4096 * len(plan.secure_sites)


class SecureExchange:
    """The secure aggregation of one round: it runs the stages with the sites that have trained.

    Attributes:
        refused: sites that did not answer or were refused, with the reason.
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
            plan: the plan of the run.
            nodes: names of the sites that were selected for training, by node id.
            round_number: 1-based.
            start: the payload at the start of the round.
            traffic: bytes by site; the bytes of this exchange are added.
            authority: the certificate of the authority that issued the sites' signing certificates.
            now: the time at which the certificates must be valid.
        """
        self.refused: list[Refusal] = []
        self._grid, self._plan, self._nodes, self._round = grid, plan, nodes, round_number
        self._traffic = traffic
        session = plan.session(round_number, digest_start(start, plan.training.model_dump_json()))
        self._leader = SecureAggregationServer(session, authority=authority, now=now)
        self.update_bytes: dict[str, int] = {}

    def collect(self, trained: Sequence[Accepted]) -> Collected:
        """Return the mean of the updates as a single update; `trained` are the accepted train replies."""
        try:
            mean = self.run([site for site, _ in trained])
        except AggregationAbandonedError as abandoned:
            return Collected((), (), self.refused, f"secure aggregation: {abandoned}")
        stated = {
            site: weigh_site(reply.examples, self._plan.weights, self._plan.weight_cap) for site, reply in trained
        }
        if mean.weight != sum(stated[site] for site in mean.sites):
            # A site that adds a larger weight than it stated could dominate the mean.
            return Collected((), (), self.refused, "secure aggregation: the summed weights differ from the stated ones")
        # Strategies that work on the mean read neither loss nor steps.
        update = Update("the sum", mean.mean, mean.weight, loss=0.0, steps=1)
        return Collected((update,), mean.sites, self.refused, update_bytes=self.update_bytes)

    def run(self, trained: Collection[str]) -> SecureMean:
        """Return the weighted mean of the updates of the sites that complete all stages.

        Args:
            trained: names of the sites whose train replies were accepted.

        Raises:
            AggregationAbandonedError: if too few sites complete the stages, or the sum cannot be unmasked.
        """
        requests = dict.fromkeys(sorted(trained), b"")
        for stage in STAGES:
            self._ask(stage, requests)
            if stage != STAGES[-1]:
                requests = self._leader.advance()
        mean = self._leader.finish()
        # A wrong share is found only when a secret is reconstructed from it.
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
                    raise MessageRefusedError(f"it did not answer with its {stage}")
                frame.header.require(header)
                self._leader.take(site, frame.content)
            except MessageRefusedError as refusal:
                self._leave_out(site, stage, clean_text(str(refusal)))
            except Exception:  # noqa: BLE001 - one site's malformed bytes must not end the round
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
