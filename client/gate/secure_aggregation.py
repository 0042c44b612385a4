"""The gate's checks for secure aggregation: of each stage's request, and of the update before it is masked.

A masked input cannot be judged once it is masked, so the update is judged before: by the rules that hold for one that
leaves in plaintext.
"""

from collections.abc import Mapping

from client.gate.incoming import check_header
from client.gate.outgoing import bound_update, check_class_images, check_tensor_names, check_training_images
from client.gate.policy import Policy
from client.gate.run_history import CONTENT, SECURE, KnownRun
from client.gate.violations import PolicyViolation
from ept_fed.protocol.layout import PayloadLayout, PayloadMismatchError, Vector
from ept_fed.protocol.messages import RoundRequest
from ept_fed.protocol.proposal import Proposal
from ept_fed.protocol.stages import StageRequest

__all__ = ["check_repetition", "check_secure_request", "check_stage", "check_update", "describe_secure_aggregation"]


def describe_secure_aggregation(proposal: Proposal) -> dict[str, str]:
    """Return what the ledger says of a proposal whose updates leave under secure aggregation."""
    nameless = proposal.model_copy(update={"name": "nameless"})
    return {SECURE: ", ".join(proposal.sites), CONTENT: nameless.digest}


def check_repetition(run: str, content: str, runs: Mapping[str, KnownRun]) -> list[PolicyViolation]:
    """Return what breaks if a run would give again, under another name, what left under secure aggregation before.

    Equal settings and seeds train to the same bits. The sums of two such runs, in which not the same sites took part,
    would differ by single sites.
    """
    twins = [
        name for name, known in runs.items() if name != run and known.content == content and known.last_secure_round
    ]
    fix = "it left its updates under secure aggregation; the consortium has to change the seed of the new run"
    return [PolicyViolation("protocol.run", f"the same as run {name}", fix) for name in twins]


def check_secure_request(request: RoundRequest, known: KnownRun) -> list[PolicyViolation]:
    """Return every rule that a train or evaluate request of a run under secure aggregation breaks."""
    violations = []
    if request.correction is not None or request.wants_gradient:
        fix = "updates of this run leave under secure aggregation, so no gradient leaves and no site gets its own term"
        violations.append(PolicyViolation("protocol.request", "gradient or correction", fix))
    if request.phase == "train" and request.header.round <= known.last_secure_round:
        fix = "the update of this round left under secure aggregation already, and leaves once"
        violations.append(PolicyViolation("protocol.replay", f"train of round {request.header.round}", fix))
    return violations


def check_stage(
    policy: Policy, request: StageRequest, layout: PayloadLayout, known: KnownRun | None
) -> list[PolicyViolation]:
    """Return every rule that the request for a stage breaks.

    Args:
        policy: the site's.
        request: what came.
        layout: that the site itself made.
        known: what the site knows of the run; None if nothing.
    """
    violations = check_header(policy, request.header, layout, known)
    if violations or known is None:
        return violations
    number = request.header.round
    if not known.secure:
        fix = "updates of this run leave in plaintext; the consortium has to propose it with secure_aggregation"
        violations.append(PolicyViolation("protocol.stage", request.stage, fix))
    if (number, "train", "") not in known.accepted or number != known.last_round:
        fix = "the site did not just train this round; a stage follows the round's train request"
        violations.append(PolicyViolation("protocol.replay", f"{request.stage} of round {number}", fix))
    if request.stage in ("advertisement", "masked input") and number <= known.last_secure_round:
        fix = "the update of this round left already; two sums of one round would tell of single sites"
        violations.append(PolicyViolation("protocol.replay", f"{request.stage} of round {number}", fix))
    return violations


def check_update(
    policy: Policy, received: Vector, trained: Vector, examples: int, layout: PayloadLayout, known: KnownRun
) -> tuple[Vector, str, list[PolicyViolation]]:
    """Return the payload to mask, what was done if it was clipped, and every rule that it breaks.

    Args:
        policy: the site's.
        received: the prompts that the round began with.
        trained: what the site would mask, layout.size float32.
        examples: training images behind it.
        layout: that the site made.
        known: what the site knows of the run.
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
