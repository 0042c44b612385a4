"""The gate's interface: what every message has to pass, coming in and going out, before anything is done with it."""

from collections.abc import Mapping
from typing import Literal, Protocol

from client.site.privacy_cost import RoundCost
from ept_fed.protocol.layout import PayloadLayout, Vector
from ept_fed.protocol.messages import RoundReply, RoundRequest, Split
from ept_fed.protocol.proposal import Proposal, SiteIntroduction
from ept_fed.protocol.stages import StageRequest

__all__ = ["Direction", "GateInterface"]

Direction = Literal["in", "out"]


class GateInterface(Protocol):
    """Admits what comes from the server, releases what goes to it, and records both.

    `frame` is always the exact bytes, as the worker received or would send them. A gate that cannot record raises
    OSError, and the message does not pass.
    """

    @property
    def ended(self) -> bool:
        """Whether it can record nothing any more until the worker starts anew."""

    def admit_proposal(self, run: str, proposal: Proposal, frame: bytes) -> None:
        """Let a proposal in.

        Raises:
            MessageRefusedError: with a sentence that may leave the site.
        """

    def release_introduction(
        self, run: str, introduction: SiteIntroduction, frame: bytes, *, counts: Mapping[Split, int]
    ) -> None:
        """Let the answer to a proposal out.

        Args:
            run: the proposal's.
            introduction: the answer.
            frame: its bytes.
            counts: images per split at this site, which do not travel.

        Raises:
            MessageRefusedError: with a sentence that may leave the site.
        """

    def admit(self, request: RoundRequest, proposal: Proposal, layout: PayloadLayout, frame: bytes) -> None:
        """Let a train or evaluate request in.

        Args:
            request: whose arrays fit the layout.
            proposal: that the site agreed to for this run, perhaps long ago and under another policy.
            layout: that the site made.
            frame: the request's bytes.

        Raises:
            MessageRefusedError: with a sentence that may leave the site.
        """

    def charge(self, request: RoundRequest, cost: RoundCost) -> None:
        """Take what a private round will cost from the site's budget, before the round begins.

        Args:
            request: that asks for the round.
            cost: of the round, as the run agreed on it.

        Raises:
            MessageRefusedError: with a sentence that may leave the site.
        """

    def release(self, request: RoundRequest, reply: RoundReply, layout: PayloadLayout) -> RoundReply:
        """Let a reply out, as it is or with a smaller update.

        Raises:
            MessageRefusedError: with a sentence that may leave the site.
        """

    def admit_stage(self, request: StageRequest, proposal: Proposal, layout: PayloadLayout, frame: bytes) -> None:
        """Let the request for a stage of secure aggregation in.

        Raises:
            MessageRefusedError: with a sentence that may leave the site.
        """

    def mask(
        self, request: StageRequest, received: Vector, trained: Vector, examples: int, layout: PayloadLayout
    ) -> Vector:
        """Return an update, which nobody can check once it is masked, as it may leave under secure aggregation.

        Raises:
            MessageRefusedError: with a sentence that may leave the site.
        """

    def release_stage(self, request: StageRequest, frame: bytes) -> None:
        """Let the site's part of a stage out, a masked input only after `mask`.

        Raises:
            MessageRefusedError: with a sentence that may leave the site.
        """

    def secure_rounds(self, run: str) -> int:
        """Return the last round of a run whose update left under secure aggregation; 0 if none did."""

    def refused(self, direction: Direction, kind: str, reason: str, frame: bytes) -> None:
        """Record what could not be read or answered; the bytes are those that came in."""
