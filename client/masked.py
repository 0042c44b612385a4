"""What the gate asks of the stages of a secure aggregation, coming in, and of the update that leaves under masks.

A masked input cannot be judged once it is masked, so the update is judged before: by the rules that hold for one that
leaves in clear.
"""

from client.incoming import judge_header
from client.known_runs import KnownRun
from client.outgoing import bound_update, judge_tensor_names, judge_training_images
from client.policy import Policy
from client.rules import RuleBroken
from ept_fed.protocol.layout import PayloadLayout, PayloadMismatchError, Vector
from ept_fed.protocol.stages import StageRequest

__all__ = ["judge_stage", "judge_update"]


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
    policy: Policy, received: Vector | None, trained: Vector, examples: int, layout: PayloadLayout, known: KnownRun
) -> tuple[Vector, str, list[RuleBroken]]:
    """Return the payload to mask, what was done if it was clipped, and every rule that it breaks.

    Args:
        policy: the site's.
        received: the prompts that the round began with; None if they are lost.
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
    if received is None:
        fix = "the prompts that the round began with are lost; the site takes part again in the next round"
        broken.append(RuleBroken("outgoing.update", "unknown", fix))
    if broken or received is None:
        return trained, "", broken
    return bound_update(policy, received, trained, layout)
