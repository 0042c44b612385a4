"""What the gate asks of the stages of a secure aggregation, coming in, and of the update that leaves under masks.

A masked input cannot be judged once it is masked, so the update is judged before: by the rules that hold for one that
leaves in clear.
"""

from collections.abc import Mapping

from client.gate.incoming import judge_header
from client.gate.outgoing import bound_update, judge_class_images, judge_tensor_names, judge_training_images
from client.gate.policy import Policy
from client.gate.run_history import CONTENT, SECURE, KnownRun
from client.gate.violations import RuleBroken
from ept_fed.protocol.layout import PayloadLayout, PayloadMismatchError, Vector
from ept_fed.protocol.messages import RoundRequest
from ept_fed.protocol.proposal import Proposal
from ept_fed.protocol.stages import StageRequest

__all__ = ["describe_masks", "judge_masked_request", "judge_repetition", "judge_stage", "judge_update"]


def describe_masks(proposal: Proposal) -> dict[str, str]:
    """Return what the ledger says of a proposal whose updates leave under masks."""
    nameless = proposal.model_copy(update={"name": "nameless"})
    return {SECURE: ", ".join(proposal.sites), CONTENT: nameless.digest}


def judge_repetition(run: str, content: str, runs: Mapping[str, KnownRun]) -> list[RuleBroken]:
    """Return what breaks if a run would give again, under another name, what left under masks before.

    Equal settings and seeds train to the same bits. The sums of two such runs, in which not the same sites took part,
    would differ by single sites.
    """
    twins = [name for name, known in runs.items() if name != run and known.content == content and known.masked]
    fix = "it left its updates under masks; the consortium has to change the seed of the new run"
    return [RuleBroken("protocol.run", f"the same as run {name}", fix) for name in twins]


def judge_masked_request(request: RoundRequest, known: KnownRun) -> list[RuleBroken]:
    """Return every rule that a train or evaluate request breaks because the run's updates leave under masks."""
    broken = []
    if request.correction is not None or request.wants_gradient:
        fix = "updates of this run leave under masks, so no gradient leaves and no site is given a term of its own"
        broken.append(RuleBroken("protocol.request", "gradient or correction", fix))
    if request.phase == "train" and request.header.round <= known.masked:
        fix = "the update of this round left under masks already, and leaves once"
        broken.append(RuleBroken("protocol.replay", f"train of round {request.header.round}", fix))
    return broken


def judge_stage(
    policy: Policy, request: StageRequest, layout: PayloadLayout, known: KnownRun | None
) -> list[RuleBroken]:
    """Return every rule that the request for a stage breaks.

    Args:
        policy: the site's.
        request: what came.
        layout: that the site itself made.
        known: what the site knows of the run; None if nothing.
    """
    broken = judge_header(policy, request.header, layout, known)
    if broken or known is None:
        return broken
    number = request.header.round
    if not known.secure:
        fix = "updates of this run leave in clear; the consortium has to propose it with secure_aggregation"
        broken.append(RuleBroken("protocol.stage", request.stage, fix))
    if (number, "train", "") not in known.accepted or number != known.last_round:
        fix = "the site did not just train this round; a stage follows the round's train request"
        broken.append(RuleBroken("protocol.replay", f"{request.stage} of round {number}", fix))
    if request.stage in ("advertisement", "masked input") and number <= known.masked:
        fix = "the update of this round left already; two sums of one round would tell of single sites"
        broken.append(RuleBroken("protocol.replay", f"{request.stage} of round {number}", fix))
    return broken


def judge_update(
    policy: Policy, received: Vector, trained: Vector, examples: int, layout: PayloadLayout, known: KnownRun
) -> tuple[Vector, str, list[RuleBroken]]:
    """Return the payload to mask, what was done if it was clipped, and every rule that it breaks.

    Args:
        policy: the site's.
        received: the prompts that the round began with.
        trained: what the site would mask, layout.size float32.
        examples: training images behind it.
        layout: that the site made.
        known: what the site knows of the run.
    """
    broken = judge_tensor_names(policy, layout) + judge_training_images(policy, examples)
    if layout.hash != known.layout:
        broken.append(RuleBroken("protocol.layout", layout.hash, f"the site introduced itself with {known.layout}"))
    try:
        layout.check(trained)
    except PayloadMismatchError as error:
        broken.append(RuleBroken("protocol.payload", "update", str(error)))
    else:
        broken += judge_class_images(policy, trained, layout, examples)
    if broken:
        return trained, "", broken
    return bound_update(policy, received, trained, layout, known)
