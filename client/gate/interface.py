"""The gate's interface: every incoming and outgoing message has to pass it before anything is done with it."""

from collections.abc import Mapping
from typing import Literal, Protocol

from client.site.privacy_plan import RoundCost
from ept_fed.protocol.layout import PayloadLayout, Vector
from ept_fed.protocol.messages import RoundReply, RoundRequest, Split
from ept_fed.protocol.proposal import Proposal, SiteIntroduction
from ept_fed.protocol.stage_messages import StageRequest

__all__ = ["Direction", "GateInterface"]

Direction = Literal["in", "out"]


class GateInterface(Protocol):
    """Accepts messages from the server, releases messages to it, and records both.

    `frame` always holds the exact bytes that the worker received or would send. A gate that cannot record raises
    OSError, and the message does not pass.
    """

    @property
    def ended(self) -> bool:
        """Whether it can record nothing more until the worker is restarted."""

    def admit_proposal(self, run: str, proposal: Proposal, frame: bytes) -> None:
        """Accept a proposal.

        Raises:
            MessageRefusedError: with a sentence that may leave the site.
        """

    def release_introduction(
        self, run: str, introduction: SiteIntroduction, frame: bytes, *, counts: Mapping[Split, int]
    ) -> None:
        """Release the answer to a proposal.

        Args:
            run: name of the proposed run.
            introduction: the answer.
            frame: bytes of the answer.
            counts: images per split at this site; they are not sent.

        Raises:
            MessageRefusedError: with a sentence that may leave the site.
        """

    def admit(self, request: RoundRequest, proposal: Proposal, layout: PayloadLayout, frame: bytes) -> None:
        """Accept a train or evaluate request.

        Args:
            request: a request whose arrays fit the layout.
            proposal: the proposal that the site agreed to for this run, perhaps long ago and under another policy.
            layout: the layout that the site made.
            frame: bytes of the request.

        Raises:
            MessageRefusedError: with a sentence that may leave the site.
        """

    def charge(self, request: RoundRequest, cost: RoundCost) -> None:
        """Charge the cost of a private round to the site's budget, before the round begins.

        Args:
            request: the request for the round.
            cost: cost of the round, as agreed on for the run.

        Raises:
            MessageRefusedError: with a sentence that may leave the site.
        """

    def release(self, request: RoundRequest, reply: RoundReply, layout: PayloadLayout) -> RoundReply:
        """Release a reply, unchanged or with a smaller update.

        Raises:
            MessageRefusedError: with a sentence that may leave the site.
        """

    def admit_stage(self, request: StageRequest, proposal: Proposal, layout: PayloadLayout, frame: bytes) -> None:
        """Accept the request for a stage of secure aggregation.

        Raises:
            MessageRefusedError: with a sentence that may leave the site.
        """

    def mask(
        self, request: StageRequest, received: Vector, trained: Vector, examples: int, layout: PayloadLayout
    ) -> Vector:
        """Return the update that may leave under secure aggregation; it is checked now, because a masked one cannot be.

        Raises:
            MessageRefusedError: with a sentence that may leave the site.
        """

    def release_stage(self, request: StageRequest, frame: bytes) -> None:
        """Release the site's part of a stage; a masked input is released only after `mask`.

        Raises:
            MessageRefusedError: with a sentence that may leave the site.
        """

    def secure_rounds(self, run: str) -> int:
        """Return the last round of a run whose update left under secure aggregation; 0 if none did."""

    def refused(self, direction: Direction, kind: str, reason: str, frame: bytes) -> None:
        """Record a message that could not be read or answered; `frame` holds the bytes that were received."""
