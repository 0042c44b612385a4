"""The gate's checks for secure aggregation: of each stage's request, and of the update before it is masked.

A masked input cannot be checked any more. So the update is checked before masking, by the same rules as an update that
leaves in plaintext.
"""

from client.gate.incoming import check_header
from client.gate.outgoing import bound_update, check_class_images, check_tensor_names, check_training_images
from client.gate.policy import Policy
from client.gate.run_history import SECURE, KnownRun
from client.gate.violations import PolicyViolation
from ept_fed.protocol.layout import PayloadLayout, PayloadMismatchError, Vector
from ept_fed.protocol.messages import RoundRequest
from ept_fed.protocol.proposal import Proposal
from ept_fed.protocol.stage_messages import StageRequest

__all__ = ["check_secure_request", "check_stage", "check_update", "describe_secure_aggregation"]


def describe_secure_aggregation(proposal: Proposal) -> dict[str, str]:
    """Return the ledger's description of a proposal whose updates leave under secure aggregation."""
    return {SECURE: ", ".join(proposal.sites)}


def check_secure_request(request: RoundRequest, known: KnownRun) -> list[PolicyViolation]:
    """Return every policy violation of a train or evaluate request in a run under secure aggregation."""
    violations = []
    if request.correction is not None or request.wants_gradient:
        fix = "updates of this run leave under secure aggregation, so no gradient leaves and no site gets a correction"
        violations.append(PolicyViolation("protocol.request", "gradient or correction", fix))
    if request.phase == "train" and request.header.round <= known.last_secure_round:
        fix = "the update of this round has left under secure aggregation already, and may leave only once"
        violations.append(PolicyViolation("protocol.replay", f"train of round {request.header.round}", fix))
    return violations


def check_stage(
    policy: Policy, request: StageRequest, layout: PayloadLayout, known: KnownRun | None
) -> list[PolicyViolation]:
    """Return every policy violation of the request for a stage.

    Args:
        policy: the site's policy.
        request: the received request.
        layout: the layout that the site itself made.
        known: the site's history of the run; None if there is none.
    """
    violations = check_header(policy, request.header, layout, known)
    if violations or known is None:
        return violations
    number = request.header.round
    if not known.secure:
        fix = "updates of this run leave in plaintext; the consortium has to propose it with secure_aggregation"
        violations.append(PolicyViolation("protocol.stage", request.stage, fix))
    if (number, "train", "") not in known.accepted or number != known.last_round:
        fix = "this is not the round that the site trained last; a stage follows the round's train request"
        violations.append(PolicyViolation("protocol.replay", f"{request.stage} of round {number}", fix))
    if request.stage in ("advertisement", "masked input") and number <= known.last_secure_round:
        fix = "the update of this round has left already; two sums of one round would leak the updates of single sites"
        violations.append(PolicyViolation("protocol.replay", f"{request.stage} of round {number}", fix))
    return violations


def check_update(
    policy: Policy, received: Vector, trained: Vector, examples: int, layout: PayloadLayout, known: KnownRun
) -> tuple[Vector, str, list[PolicyViolation]]:
    """Return the payload to mask, a note on the clipping (empty if none), and every policy violation.

    Args:
        policy: the site's policy.
        received: the prompts that the round began with.
        trained: the payload that the site would mask, (layout.size,) float32.
        examples: number of training images that it was trained on.
        layout: the layout that the site made.
        known: the site's history of the run.
    """
    violations = check_tensor_names(policy, layout) + check_training_images(policy, examples)
    if layout.hash != known.layout:
        violations.append(
            PolicyViolation("protocol.layout", layout.hash, f"the site introduced itself with {known.layout}")
        )
    try:
        layout.check(trained)
    except PayloadMismatchError as error:
        violations.append(PolicyViolation("protocol.payload", "update", str(error)))
    else:
        violations += check_class_images(policy, trained, layout, examples)
    if violations:
        return trained, "", violations
    return bound_update(policy, received, trained, layout, known)
