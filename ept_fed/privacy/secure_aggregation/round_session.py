"""The secure-aggregation session of a round, derived from the run's agreement; server and sites get the same session.

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
        run, round_number: identify the round.
        start: `digest_start` of the payload and settings at the start of the round.
        sites: names of all sites that take part in the run.
        threshold: as in `SecureAggregationSettings`.
        layout: layout of the payload.
        weights, weight_cap: as in `FederationSettings`.

    Raises:
        InputRefusedError: if these arguments give no valid session.
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
    """Return the digest of a round's start: the prompts (n,) and the training settings as serialized."""
    content = np.ascontiguousarray(payload, dtype="<f4").tobytes()
    return hashlib.sha256(hashlib.sha256(content).digest() + settings.encode()).hexdigest()


def count_min_sites(sites: int, threshold: int | None) -> int:
    """Return the minimum number of sites in a sum, for `sites` sites in the run."""
    return max(MIN_SITES, default_threshold(sites) if threshold is None else threshold)


def weigh_site(examples: int, weights: Weights, weight_cap: int | None) -> int:
    """Return the integer weight of a site with `examples` training images, by the rule of `site_weights`."""
    if weights == "uniform":
        return 1
    return examples if weights == "examples" else min(examples, weight_cap or 1)
