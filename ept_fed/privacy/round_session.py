"""From what a run has agreed on to the session of one of its rounds, the same at server and sites.

A site takes all of this from the proposal that it agreed to, never from a message of the round.
"""

from collections.abc import Sequence
from typing import Literal

from ept_fed.privacy.aggregation_session import AggregationSession, default_threshold
from ept_fed.privacy.fixed_point import FixedPoint
from ept_fed.protocol.layout import PayloadLayout

__all__ = ["MOST_EXAMPLES", "Weights", "plan_session", "weigh_site"]

Weights = Literal["examples", "uniform", "capped"]
MOST_EXAMPLES = 1 << 20  # leaves room for a sum of a thousand sites in 64 bits


def plan_session(
    *,
    run: str,
    round_number: int,
    sites: Sequence[str],
    threshold: int | None,
    layout: PayloadLayout,
    weights: Weights,
    weight_cap: int | None,
) -> AggregationSession:
    """Return the session of a round.

    Args:
        run, round_number: whose.
        sites: names of all that take part in the run.
        threshold: as in `SecureAggregationSettings`.
        layout: of the payload.
        weights, weight_cap: as in `FederationSettings`.

    Raises:
        InputRefusedError: if no session can be had of these.
    """
    names = tuple(sorted(sites))
    heaviest = {"examples": MOST_EXAMPLES, "uniform": 1, "capped": weight_cap or 1}[weights]
    return AggregationSession(
        run=run,
        round=round_number,
        attempt=1,
        sites=names,
        threshold=default_threshold(len(names)) if threshold is None else threshold,
        layout_hash=layout.hash,
        size=layout.size,
        encoding=FixedPoint(sites=len(names), heaviest=heaviest),
    )


def weigh_site(examples: int, weights: Weights, weight_cap: int | None) -> int:
    """Return the whole number that a site with so many training images counts; the same rule as `site_weights`."""
    if weights == "uniform":
        return 1
    return examples if weights == "examples" else min(examples, weight_cap or 1)
