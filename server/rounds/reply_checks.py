"""Checks of a site's reply: its format, its round, the limits agreed for the site, and the norm of its update.

`admit` checks a single reply. It checks the format and the header before the content (`ept_fed.flower.messages`), then
the limits that the plan sets for this site. `refuse_norm_outliers` compares the replies of a round with each other.
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

# The median of two norms is between them, so it does not show which of the two is the outlier.
_MIN_FOR_MEDIAN = 3

Accepted = tuple[str, RoundReply]


def admit(site: str, message: Message, request: RoundRequest, plan: Plan) -> RoundReply:
    """Return the reply in a message, after all checks that need only this reply.

    Raises:
        MessageRefusedError, PayloadMismatchError: with the reason that is written to the round's record.
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
        raise MessageRefusedError(f"{steps}; the run's settings allow at most {possible}")
    return reply


def refuse_norm_outliers(
    payload: Vector, replies: Sequence[Accepted], plan: Plan
) -> tuple[list[Accepted], list[Refusal]]:
    """Split a round's train replies into replies to average and refusals of norm outliers.

    A reply is refused if the norm of its update or its gradient is an outlier. FedNova divides updates by the sites'
    numbers of steps, so with FedNova the update per step is compared too.
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
                    f"its {what} has norm {norm:.3g}, above {norm_bound:g} times the round's median {median:.3g}"
                )
    kept = [(site, reply) for site, reply in replies if site not in reasons]
    return kept, [Refusal(site, "train", reason) for site, reason in reasons.items()]


def find_norm_outliers(vectors: Mapping[str, Vector], bound: float) -> dict[str, tuple[float, float]]:
    """Return the norm and the median norm for every vector (n,) whose norm is above `bound` times the median of all.

    The result is empty for fewer than three vectors or a median of zero, because these define no usual norm.
    """
    norms = {site: float(np.linalg.norm(vector.astype(np.float64))) for site, vector in vectors.items()}
    median = float(np.median(list(norms.values()))) if len(norms) >= _MIN_FOR_MEDIAN else 0.0
    return {site: (norm, median) for site, norm in norms.items() if 0 < bound * median < norm}
