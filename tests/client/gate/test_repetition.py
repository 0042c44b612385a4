"""What several runs together would tell is refused, by the same rules before and after a restart."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.gate.gate import Gate
from client.gate.policy import Policy
from client.gate.repetition import check_repetition
from client.gate.run_history import KnownRun
from ept_fed.config.privacy import SecureAggregationSettings
from ept_fed.protocol.messages import Header
from ept_fed.protocol.proposal import Proposal, propose
from tests.client.gated_kit import BACKBONE, COUNTS, INITIAL, LAYOUT, Kit, answer, introduction, request, rules_of

NOW = datetime(2026, 12, 1, tzinfo=UTC)
SITES = ("east", "north", "south")


@pytest.fixture
def plain(tmp_path: Path, micro: Any) -> Kit:
    return Kit(tmp_path, propose(micro("data.classes=[a, b]", "federation.rounds=5"), SITES))


def masked_statistics(micro: Any, *overrides: str) -> Proposal:
    experiment = micro(
        "data.classes=[a, b]", "federation={rounds: 1, norm_bound: null, share: prompts+head, select: last}",
        "training.head=lda", *overrides,
    )  # fmt: skip
    federation = experiment.federation.model_copy(update={"secure_aggregation": SecureAggregationSettings()})
    return propose(experiment.model_copy(update={"federation": federation}), SITES)


def policy(**outgoing: Any) -> Policy:
    return Policy.model_validate({"schema": 1, "outgoing": outgoing})


def rules(found: list[Any]) -> set[str]:
    return {violation.rule for violation in found}


@given(
    ages=st.lists(st.one_of(st.none(), st.floats(0.0, 60.0)), max_size=8),
    limit=st.integers(1, 4),
    days=st.integers(1, 40),
    begun=st.booleans(),
)
def test_a_new_run_is_refused_if_and_only_if_updates_left_in_as_many_runs_lately(
    ages: list[float | None], limit: int, days: int, begun: bool
) -> None:
    proposal = _PLAIN
    runs = {
        f"run-{number}": KnownRun("p", last_update=None if age is None else NOW - timedelta(days=age))
        for number, age in enumerate(ages)
    }
    runs["new"] = KnownRun("p", last_update=NOW - timedelta(days=1) if begun else None)
    recent = sum(age is not None and age <= days for age in ages)
    found = check_repetition(policy(run_limit={"runs": limit, "days": days}), "new", proposal, runs, NOW)
    assert rules(found) == ({"outgoing.run_limit"} if recent >= limit and not begun else set())
    assert not check_repetition(policy(run_limit=None), "new", proposal, runs, NOW)


_PLAIN = Proposal.model_construct(
    seed=0,
    federation=type("Federation", (), {"secure_aggregation": None, "share": "prompts"})(),
    training=type("Training", (), {"head": "trained"})(),
)


def begin(gate: Gate, run: str, proposal: Proposal) -> Header:
    gate.admit_proposal(run, proposal, b"frame")
    gate.release_introduction(run, introduction(proposal, run=run, initial=INITIAL), b"frame", counts=COUNTS)
    return Header(run, 1, BACKBONE, LAYOUT.hash)


def test_the_limit_counts_runs_whose_updates_left_and_holds_after_a_restart(plain: Kit) -> None:
    limit = {"outgoing__run_limit": {"runs": 1, "days": 30}}
    gate = plain.open(**limit)
    plain.join(gate)
    other = plain.proposal.model_copy(update={"name": "another"})
    waiting = begin(gate, "run-b", other)
    asked = request(1)
    plain.admit(gate, asked)
    # The request alone tells nothing.
    begin(gate, "run-c", other)
    gate.release(asked, answer(asked, payload=INITIAL + np.float32(0.1)), LAYOUT)
    for restart in (False, True):
        at = plain.open(**limit) if restart else gate
        assert rules_of(lambda at=at: begin(at, "run-d", other)) == ("outgoing.run_limit",)
        late = request(1, header=waiting)
        assert rules_of(lambda at=at, late=late: at.admit(late, other, LAYOUT, b"x")) == ("outgoing.run_limit",)
    gate = plain.open(outgoing__run_limit={"runs": 2, "days": 30})
    begin(gate, "run-d", other)
    plain.join(gate)
    plain.admit(gate, request(2))


def test_statistics_leave_under_masks_in_one_run_whatever_the_seed_of_the_next(micro: Any) -> None:
    first, second = masked_statistics(micro), masked_statistics(micro, "seed=77")
    left = KnownRun("p", secure=True, seed=str(first.seed))
    left.leave_masked(1, ("sinks", "statistics.sums"), NOW)
    told = check_repetition(policy(), "second", second, {"first": left}, NOW)
    assert rules(told) == {"outgoing.repeated_statistics"}
    assert not check_repetition(policy(repeated_statistics=True), "second", second, {"first": left}, NOW)
    prompts = KnownRun("p", secure=True, seed=str(first.seed))
    prompts.leave_masked(1, ("sinks",), NOW)
    assert not check_repetition(policy(), "second", second, {"first": prompts}, NOW)
    assert rules(check_repetition(policy(), "second", first, {"first": prompts}, NOW)) == {"protocol.run"}
