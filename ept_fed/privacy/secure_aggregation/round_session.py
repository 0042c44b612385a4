"""From what a run has agreed on to the session of one of its rounds, the same at server and sites.

A site takes all of this from the proposal that it agreed to, never from a message of the round.
"""

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np

from ept_fed.privacy.secure_aggregation.fixed_point import FixedPoint
from ept_fed.privacy.secure_aggregation.session import MIN_SITES, AggregationSession, default_threshold
from ept_fed.protocol.layout import PayloadLayout, Vector

__all__ = ["MAX_EXAMPLES", "Weights", "count_min_sites", "digest_start", "plan_session", "weigh_site"]

Weights = Literal["examples", "uniform", "capped"]
MAX_EXAMPLES = 1 << 20  # leaves room for a sum of a thousand sites in 64 bits


def plan_session(
    *,
    run: str,
    round_number: int,
    start: str,
    sites: Sequence[str],
    threshold: int | None,
    layout: PayloadLayout,
    weights: Weights,
    weight_cap: int | None,
) -> AggregationSession:
    """Return the session of a round.

    Args:
        run, round_number: whose.
        start: `digest_start` of what the round began with.
        sites: names of all that take part in the run.
        threshold: as in `SecureAggregationSettings`.
        layout: of the payload.
        weights, weight_cap: as in `FederationSettings`.

    Raises:
        InputRefusedError: if no session can be had of these.
    """
    names = tuple(sorted(sites))
    heaviest = {"examples": MAX_EXAMPLES, "uniform": 1, "capped": weight_cap or 1}[weights]
    return AggregationSession(
        run=run,
        round=round_number,
        attempt=1,
        sites=names,
        threshold=default_threshold(len(names)) if threshold is None else threshold,
        start=start,
        layout_hash=layout.hash,
        size=layout.size,
        encoding=FixedPoint(sites=len(names), heaviest=heaviest),
    )


def digest_start(payload: Vector, settings: str) -> str:
    """Return the digest of what a round begins with: prompts (n,), and training settings as they are spelled."""
    content = np.ascontiguousarray(payload, dtype="<f4").tobytes()
    return hashlib.sha256(hashlib.sha256(content).digest() + settings.encode()).hexdigest()


def count_min_sites(sites: int, threshold: int | None) -> int:
    """Return how many of so many sites a sum is of, at least."""
    return max(MIN_SITES, default_threshold(sites) if threshold is None else threshold)


def weigh_site(examples: int, weights: Weights, weight_cap: int | None) -> int:
    """Return the whole number that a site with so many training images counts; the same rule as `site_weights`."""
    if weights == "uniform":
        return 1
    return examples if weights == "examples" else min(examples, weight_cap or 1)
