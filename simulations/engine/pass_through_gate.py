"""A gate without a policy: it accepts and releases everything and records nothing, for simulations."""

from collections.abc import Mapping

from client.gate.interface import Direction
from client.site.privacy_plan import RoundCost
from ept_fed.protocol.layout import PayloadLayout, Vector
from ept_fed.protocol.messages import RoundReply, RoundRequest, Split
from ept_fed.protocol.proposal import Proposal, SiteIntroduction
from ept_fed.protocol.stage_messages import StageRequest

__all__ = ["PassThroughGate"]


class PassThroughGate:
    """Accepts every message; see `client.gate.interface`. It is not part of what a hospital runs."""

    @property
    def ended(self) -> bool:
        """Never."""
        return False

    def admit_proposal(self, run: str, proposal: Proposal, frame: bytes) -> None:
        """Accept a proposal."""

    def release_introduction(
        self, run: str, introduction: SiteIntroduction, frame: bytes, *, counts: Mapping[Split, int]
    ) -> None:
        """Release the answer to a proposal."""

    def admit(self, request: RoundRequest, proposal: Proposal, layout: PayloadLayout, frame: bytes) -> None:
        """Accept a request."""

    def charge(self, request: RoundRequest, cost: RoundCost) -> None:
        """Charge nothing."""

    def release(self, request: RoundRequest, reply: RoundReply, layout: PayloadLayout) -> RoundReply:
        """Release a reply unchanged."""
        del request, layout
        return reply

    def admit_stage(self, request: StageRequest, proposal: Proposal, layout: PayloadLayout, frame: bytes) -> None:
        """Accept the request for a stage."""

    def mask(
        self, request: StageRequest, received: Vector, trained: Vector, examples: int, layout: PayloadLayout
    ) -> Vector:
        """Return the update unchanged."""
        del request, received, examples, layout
        return trained

    def release_stage(self, request: StageRequest, frame: bytes) -> None:
        """Release the site's part of a stage."""

    def secure_rounds(self, run: str) -> int:
        """Return 0, because nothing is recorded."""
        del run
        return 0

    def refused(self, direction: Direction, kind: str, reason: str, frame: bytes) -> None:
        """Record nothing."""
