"""Requests from the server to one site of the micro experiment, and the site's part in a run, without a server."""

from client.requests.respond import SitePart
from client.site.site import Site
from ept_fed.protocol.messages import RoundRequest
from ept_fed.run_plan.plan import Plan
from simulations.engine.pass_through_gate import PassThroughGate


def request_of(plan: Plan, **changes: object) -> RoundRequest:
    """Return the request to train round 1 of a plan."""
    given = {"settings": plan.training, **changes}
    return RoundRequest(plan.header(1), "train", plan.rounds, plan.initial, "train", **given)  # type: ignore[arg-type]


def part_of(site: Site) -> SitePart:
    """Return a site's part in a run, behind a gate that reads no proposal."""
    return SitePart(site, None, PassThroughGate())  # type: ignore[arg-type]
