"""A site's answer to the proposal of a run."""

from client.gate.interface import GateInterface
from client.requests.respond import ask_gate
from client.site.site import Site
from ept_fed.protocol.frames import encode_frame
from ept_fed.protocol.messages import SPLITS, Split
from ept_fed.protocol.proposal import Proposal, SiteIntroduction

__all__ = ["introduce"]


def introduce(run: str, proposal: Proposal, site: Site, gate: GateInterface) -> SiteIntroduction:
    """Return a site's introduction, as it may leave the site.

    Args:
        run: name of the run.
        proposal: a proposal that the gate has admitted.
        site: the site, as it is made for this run.
        gate: the site's gate.

    Raises:
        GateRefusedError: if the gate does not release it.
        OSError: if the gate cannot record it.
    """
    introduction = SiteIntroduction(
        site=site.name,
        run=run,
        proposal=proposal.digest,
        backbone_digest=site.backbone_digest,
        layout=site.layout,
        initial=site.initial(),
        examples=len(site.data.train),
    )
    counts: dict[Split, int] = {name: len(site.split(name)) for name in SPLITS}
    ask_gate(gate.release_introduction, run, introduction, encode_frame(introduction), counts=counts)
    return introduction
