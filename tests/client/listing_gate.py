"""A gate that accepts every message and lists it, for tests of the code behind it.

`python -m tests.client.listing_gate KIT`
"""

import logging
import sys
from collections.abc import Mapping
from pathlib import Path

from client.site.privacy_plan import RoundCost
from client.worker.process import serve_site
from ept_fed.protocol.layout import PayloadLayout, Vector
from ept_fed.protocol.messages import RoundReply, RoundRequest, Split
from ept_fed.protocol.proposal import Proposal, SiteIntroduction
from ept_fed.protocol.stage_messages import StageRequest
from ept_fed.validation.load_site import SiteSettings
from simulations.engine.pass_through_gate import PassThroughGate


class ListingGate(PassThroughGate):
    """Accepts every message; it lists the accepted ones in `passed` and the worker's refusals in `refusals`."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self.refusals: list[tuple[str, str]] = []

    def admit_proposal(self, run: str, proposal: Proposal, frame: bytes) -> None:
        self.passed.append("proposal")

    def release_introduction(
        self, run: str, introduction: SiteIntroduction, frame: bytes, *, counts: Mapping[Split, int]
    ) -> None:
        self.passed.append("introduction")

    def admit(self, request: RoundRequest, proposal: Proposal, layout: PayloadLayout, frame: bytes) -> None:
        self.passed.append(f"{request.phase} {request.header.round}")

    def charge(self, request: RoundRequest, cost: RoundCost) -> None:
        self.passed.append(f"charge {request.header.round}")

    def release(self, request: RoundRequest, reply: RoundReply, layout: PayloadLayout) -> RoundReply:
        self.passed.append(f"reply {request.header.round}")
        return reply

    def admit_stage(self, request: StageRequest, proposal: Proposal, layout: PayloadLayout, frame: bytes) -> None:
        self.passed.append(f"{request.stage} {request.header.round}")

    def mask(
        self, request: StageRequest, received: Vector, trained: Vector, examples: int, layout: PayloadLayout
    ) -> Vector:
        self.passed.append(f"mask {request.header.round}")
        return trained

    def release_stage(self, request: StageRequest, frame: bytes) -> None:
        self.passed.append(f"part {request.header.round}")

    def refused(self, direction: str, kind: str, reason: str, frame: bytes) -> None:
        self.refusals.append((kind, reason))


def open_to_all(settings: SiteSettings, kit: Path) -> ListingGate:
    return ListingGate()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    serve_site(Path(sys.argv[1]), open_to_all)
