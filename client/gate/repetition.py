"""What several runs together would tell, although each of them is within the rules: refused before the run begins."""

from collections.abc import Mapping
from datetime import datetime, timedelta

from client.gate.policy import Policy
from client.gate.run_history import KnownRun
from client.gate.violations import PolicyViolation
from ept_fed.catalog.methods import STATISTICS_TENSORS
from ept_fed.protocol.proposal import Proposal

__all__ = ["check_repetition"]


def check_repetition(
    policy: Policy, run: str, proposal: Proposal, runs: Mapping[str, KnownRun], now: datetime
) -> list[PolicyViolation]:
    """Return the violations by a run because of the runs in which this site's updates left before.

    Args:
        policy: the site's policy.
        run: name of the run.
        proposal: its proposal.
        runs: all runs that this site knows, by name.
        now: the present time.
    """
    others = {name: known for name, known in runs.items() if name != run and known.last_update is not None}
    own = runs.get(run)
    begun = own is not None and own.last_update is not None
    violations = [] if begun else _check_number(policy, others, now)
    if proposal.federation.secure_aggregation is not None:
        violations += _check_sums(policy, proposal, others)
    return violations


def _check_number(policy: Policy, others: Mapping[str, KnownRun], now: datetime) -> list[PolicyViolation]:
    """Return the violation if updates left in too many runs lately: each run tells a little more of the same images."""
    limit = policy.outgoing.run_limit
    if limit is None:
        return []
    since = now - timedelta(days=limit.days)
    recent = sorted(name for name, known in others.items() if known.last_update and known.last_update >= since)
    if len(recent) < limit.runs:
        return []
    fix = f"updates left in so many runs in the last {limit.days} days, and the site allows {limit.runs}; wait"
    return [PolicyViolation("outgoing.run_limit", len(recent), fix)]


def _check_sums(policy: Policy, proposal: Proposal, others: Mapping[str, KnownRun]) -> list[PolicyViolation]:
    """Return the violation if the difference of two sums over different sites would be the update of a single site.

    The seed determines the start, and with the run's identity the order of the images and their augmentation. Two runs
    with one seed are close to each other, whatever else they differ in. Class statistics do not depend on the seed. A
    run in plaintext reveals the update in any case; whether one may is a rule of the policy. A masked run in a ledger
    of an earlier version has no seed, so it counts as having this one.
    """
    violations = []
    masked = {name: known for name, known in others.items() if known.last_secure_round}
    twins = [name for name, known in masked.items() if known.seed in (None, str(proposal.seed))]
    fix = "it left its updates under secure aggregation; the consortium has to change the seed of the new run"
    violations += [PolicyViolation("protocol.run", f"the seed of run {name}", fix) for name in twins]
    shared = proposal.training.head == "lda" and proposal.federation.share == "prompts+head"
    if shared and not policy.outgoing.repeated_statistics:
        told = [name for name, known in masked.items() if not known.masked_tensors.isdisjoint(STATISTICS_TENSORS)]
        fix = (
            "its class statistics left under secure aggregation, and they do not depend on the seed; the difference of "
            "two sums can be one site's statistics"
        )
        violations += [PolicyViolation("outgoing.repeated_statistics", f"after run {name}", fix) for name in told]
    return violations
