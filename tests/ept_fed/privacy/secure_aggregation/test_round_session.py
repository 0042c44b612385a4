"""The session of a round follows from the run's agreement: its sites, its threshold, and room for every weight."""

import numpy as np
import pytest

from ept_fed.privacy.secure_aggregation.round_session import (
    MAX_EXAMPLES,
    Weights,
    count_min_sites,
    digest_start,
    plan_session,
    weigh_site,
)
from ept_fed.privacy.secure_aggregation.session import AggregationSession
from ept_fed.protocol.layout import PayloadLayout

LAYOUT = PayloadLayout((("sinks", (2, 3)),))


def plan(weights: Weights = "examples", weight_cap: int | None = None, **changes: object) -> AggregationSession:
    given = {"run": "run", "round_number": 7, "start": "start", "sites": ("d", "a", "c", "b"), "threshold": None}
    return plan_session(**{**given, **changes}, layout=LAYOUT, weights=weights, weight_cap=weight_cap)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("weights", "cap", "heaviest"), [("examples", None, MAX_EXAMPLES), ("uniform", None, 1), ("capped", 25, 25)]
)
def test_a_session_has_room_for_the_weights_of_its_rule_and_no_more(
    weights: Weights, cap: int | None, heaviest: int
) -> None:
    assert plan(weights, cap).encoding.heaviest == heaviest
    for examples in (1, 24, 25, 26, MAX_EXAMPLES):
        assert weigh_site(examples, weights, cap) == min(examples, heaviest)


def test_a_session_is_that_of_its_run_and_round() -> None:
    session = plan()
    assert (session.run, session.round, session.attempt, session.start) == ("run", 7, 1, "start")
    assert (session.sites, session.encoding.sites, session.threshold) == (("a", "b", "c", "d"), 4, 3)
    assert (session.layout_hash, session.size, session.words) == (LAYOUT.hash, 6, 7)
    assert plan(threshold=4).threshold == 4


@pytest.mark.parametrize(
    ("sites", "threshold", "minimum"), [(3, None, 3), (3, 2, 3), (5, None, 4), (9, None, 6), (9, 5, 5), (9, 9, 9)]
)
def test_a_sum_has_as_many_sites_as_the_threshold_and_at_least_three(
    sites: int, threshold: int | None, minimum: int
) -> None:
    assert count_min_sites(sites, threshold) == minimum
    assert plan(sites=[f"s{number}" for number in range(sites)], threshold=threshold).minimum == minimum


def test_another_start_has_another_digest() -> None:
    one, other = np.zeros(6, np.float32), np.ones(6, np.float32)
    digests = {digest_start(payload, settings) for payload in (one, other) for settings in ("", "{}")}
    assert len(digests) == 4
