"""Check that a request matches the proposal that the site agreed to."""

from ept_fed.catalog.strategies import STRATEGIES
from ept_fed.protocol.messages import MessageRefusedError, RoundRequest
from ept_fed.protocol.proposal import Proposal
from ept_fed.run_plan.make_plan import agree_on_training

__all__ = ["require_agreed"]


def require_agreed(request: RoundRequest, proposal: Proposal) -> None:
    """Raise unless a request matches the proposal.

    Raises:
        MessageRefusedError: naming the difference.
    """
    agreed = proposal.federation.rounds
    if request.rounds != agreed:
        raise MessageRefusedError(f"the run was agreed on for {agreed} rounds, but {request.rounds} are requested")
    if request.phase == "evaluate":
        return
    strategy = STRATEGIES[proposal.federation.strategy]
    beyond = {
        "a gradient is requested": request.wants_gradient and not strategy.wants_gradient,
        "the request has a linear term for the loss": request.correction is not None and not strategy.sends_correction,
    }
    for what in (what for what, is_so in beyond.items() if is_so):
        raise MessageRefusedError(f"the run was agreed on with {proposal.federation.strategy}, but {what}")
    asked = request.training.model_dump()
    ours = agree_on_training(proposal.training, proposal.federation).model_dump()
    differing = [name for name, value in ours.items() if asked[name] != value]
    if differing:
        raise MessageRefusedError(f"training settings are not those agreed on: {', '.join(differing)} differ")
