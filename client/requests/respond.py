"""From a request to the reply that leaves: the site's gate before and after the site, in simulations and deployments.

What carries the request is not known here: a worker's socket, Flower's messages or a test.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar, overload

from client.gate.interface import GateInterface
from client.site.secure_aggregation import SecureRounds, SumTerms
from client.site.site import Site
from ept_fed.protocol.frames import encode_frame
from ept_fed.protocol.layout import PayloadMismatchError, Vector
from ept_fed.protocol.messages import MessageRefusedError, RoundReply, RoundRequest
from ept_fed.protocol.proposal import Proposal
from ept_fed.protocol.stage_messages import StageReply, StageRequest

__all__ = ["GateRefusedError", "LastReply", "SitePart", "ask_gate", "respond"]

_Arguments = ParamSpec("_Arguments")
_Made = TypeVar("_Made")


class GateRefusedError(MessageRefusedError):
    """The gate refused a message, and has recorded the refusal itself."""


@dataclass
class LastReply:
    """The last train reply before it passed the gate, and the digest of the frame that it answers."""

    digest: bytes = b""
    reply: RoundReply | None = None

    def find(self, frame: bytes, site: Site) -> RoundReply | None:
        """Return the reply to an identical earlier request, if the site's state is still the one after that round."""
        if self.reply is None or self.digest != hashlib.sha256(frame).digest():
            return None
        state = site.state
        return self.reply if state is not None and state.round == self.reply.header.round else None

    def keep(self, frame: bytes, reply: RoundReply) -> None:
        """Replace the reply."""
        self.digest, self.reply = hashlib.sha256(frame).digest(), reply

    def drop(self) -> None:
        """Forget the reply, because the site's state changes."""
        self.digest, self.reply = b"", None


@dataclass(frozen=True)
class SitePart:
    """A site's part in a run that it agreed to.

    Attributes:
        site: the site, as it is made for this run.
        proposal: the agreed proposal.
        gate: the site's gate.
        rounds: returns the site's part in secure aggregation, when it is needed; None if the updates leave with the
            replies.
        terms: the terms of the sums; None without secure aggregation.
        last: the last train reply, which answers the same request again without training.
        accept: called with each request that passed the gate and is now answered anew.
    """

    site: Site
    proposal: Proposal
    gate: GateInterface
    rounds: Callable[[], SecureRounds] | None = None
    terms: SumTerms | None = None
    last: LastReply = field(default_factory=LastReply)
    accept: Callable[[RoundRequest], None] = lambda _request: None


@overload
def respond(request: RoundRequest, frame: bytes, part: SitePart) -> RoundReply: ...
@overload
def respond(request: StageRequest, frame: bytes, part: SitePart) -> StageReply: ...
def respond(request: RoundRequest | StageRequest, frame: bytes, part: SitePart) -> RoundReply | StageReply:
    """Return the reply to a request, as it may leave the site.

    Args:
        request: the decoded request; its vectors are compared with the layout here, and nowhere after this.
        frame: its bytes as received.
        part: the site's part in the request's run.

    Raises:
        GateRefusedError: if the gate refuses request or reply.
        MessageRefusedError: for a request that does not fit the site or its part in the run.
        PayloadMismatchError: for a payload or correction that does not fit the layout.
        TrainingDivergedError: if training diverges; nothing of the round is kept.
        OSError: if the gate cannot record it, or a state cannot be written.
    """
    if isinstance(request, StageRequest):
        return _respond_to_stage(request, frame, part)
    site, gate = part.site, part.gate
    site.require_fit(request)
    # The gate comes before the site's own checks: its refusals tell the server nothing but the names of rules.
    ask_gate(gate.admit, request, part.proposal, site.layout, frame)
    site.require(request)
    if request.phase == "evaluate":
        part.accept(request)
        reply = site.evaluate(request)
    else:
        held = part.last.find(frame, site)
        reply = _train(request, frame, part) if held is None else held
    return ask_gate(gate.release, request, reply, site.layout)


def ask_gate(decide: Callable[_Arguments, _Made], *arguments: _Arguments.args, **named: _Arguments.kwargs) -> _Made:
    """Return the gate's decision.

    Raises:
        GateRefusedError: if the gate refuses.
    """
    try:
        return decide(*arguments, **named)
    except (MessageRefusedError, PayloadMismatchError) as refusal:
        raise GateRefusedError(str(refusal)) from refusal


def _train(request: RoundRequest, frame: bytes, part: SitePart) -> RoundReply:
    part.accept(request)
    part.last.drop()
    if part.rounds is not None:
        part.rounds().begin(request)
    reply = part.site.train(request, charge=lambda cost: ask_gate(part.gate.charge, request, cost))
    part.last.keep(frame, reply)
    return reply


def _respond_to_stage(request: StageRequest, frame: bytes, part: SitePart) -> StageReply:
    site, gate, terms = part.site, part.gate, part.terms
    ask_gate(gate.admit_stage, request, part.proposal, site.layout, frame)
    site.require(request)
    if part.rounds is None or terms is None:
        raise MessageRefusedError("the updates of this run leave in plaintext")
    rounds = part.rounds()

    def update() -> tuple[Vector, int]:
        number, received, _ = rounds.require_begun(request.header.round)
        trained, examples = site.masked_payload(number, received, minimum=terms.minimum), len(site.data.train)
        return ask_gate(gate.mask, request, received, trained, examples, site.layout), terms.weigh(examples)

    reply = rounds.answer(request, terms.open_session, update)
    ask_gate(gate.release_stage, request, encode_frame(reply))
    return reply
