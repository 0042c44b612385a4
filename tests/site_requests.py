"""Requests from the server to one site of the micro experiment, for tests that need no server."""

from ept_fed.protocol.messages import RoundRequest
from ept_fed.run_plan.plan import Plan


def request_of(plan: Plan, **changes: object) -> RoundRequest:
    """Return the request to train round 1 of a plan."""
    given = {"settings": plan.training, **changes}
    return RoundRequest(plan.header(1), "train", plan.rounds, plan.initial, "train", **given)  # type: ignore[arg-type]
