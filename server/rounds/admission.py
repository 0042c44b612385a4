"""What a reply must be before it counts: well-formed, about this round, within its site's bounds and not outsized.

`admit` looks at one reply: its spelling, then its header before its content (`ept_fed.flower.messages`), then what this
plan allows its site. `refuse_norm_outliers` compares the replies of a round with each other.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from flwr.app import Message

from ept_fed.flower.messages import decode_reply
from ept_fed.protocol.layout import Vector
from ept_fed.protocol.messages import MessageRefusedError, RoundReply, RoundRequest
from ept_fed.reports.run.round_record import Refusal
from ept_fed.run_plan.plan import Plan

__all__ = ["Accepted", "admit", "find_norm_outliers", "refuse_norm_outliers"]

# With two replies the median lies between them, and either could be the outsized one.
_MIN_FOR_MEDIAN = 3

Accepted = tuple[str, RoundReply]


def admit(site: str, message: Message, request: RoundRequest, plan: Plan) -> RoundReply:
    """Return the reply in a message.

    Raises:
        MessageRefusedError, PayloadMismatchError: with the sentence that goes into the round's record.
    """
    reply = decode_reply(
        message,
        request.phase,
        request.header,
        plan.layout,
        wants_gradient=request.wants_gradient,
        private=request.private,
        masked=bool(plan.secure_sites),
        silent=plan.silent,
    )
    maximum = plan.max_examples.get(site)
    if request.phase == "train" and maximum is not None and reply.examples > maximum:
        raise MessageRefusedError(
            f"claims {reply.examples} training images; at most {maximum} are agreed for this site"
        )
    if request.phase == "train" and reply.metrics["steps"] > (possible := plan.max_steps(reply.examples)):
        steps = f"claims {reply.metrics['steps']:g} steps on {reply.examples} images"
        raise MessageRefusedError(f"{steps}; the run's settings give at most {possible}")
    return reply


def refuse_norm_outliers(
    payload: Vector, replies: Sequence[Accepted], plan: Plan
) -> tuple[list[Accepted], list[Refusal]]:
    """Split a round's train replies into those to average and those whose update or gradient is outsized.

    FedNova divides updates by the sites' numbers of steps, so there the update per step is compared too.
    """
    reasons: dict[str, str] = {}
    norm_bound = plan.norm_bound
    if norm_bound is not None:
        trained = plan.layout.trained
        updates = {site: (reply.payload - payload)[trained] for site, reply in replies if reply.payload is not None}
        steps = {site: reply.metrics["steps"] for site, reply in replies}
        per_step = {site: update / steps[site] for site, update in updates.items() if plan.strategy == "fednova"}
        gradients = {site: reply.gradient for site, reply in replies if reply.gradient is not None}
        for what, vectors in (("update", updates), ("update per step", per_step), ("gradient", gradients)):
            for site, (norm, median) in find_norm_outliers(vectors, norm_bound).items():
                reasons[site] = (
                    f"its {what} has length {norm:.3g}, above {norm_bound:g} times the round's median {median:.3g}"
                )
    kept = [(site, reply) for site, reply in replies if site not in reasons]
    return kept, [Refusal(site, "train", reason) for site, reason in reasons.items()]


def find_norm_outliers(vectors: Mapping[str, Vector], bound: float) -> dict[str, tuple[float, float]]:
    """Return norm and median norm of every vector (n,) longer than `bound` times the median of all.

    Fewer than three vectors, or a median of zero, say nothing about what is usual: then none is outsized.
    """
    norms = {site: float(np.linalg.norm(vector.astype(np.float64))) for site, vector in vectors.items()}
    median = float(np.median(list(norms.values()))) if len(norms) >= _MIN_FOR_MEDIAN else 0.0
    return {site: (norm, median) for site, norm in norms.items() if 0 < bound * median < norm}
