"""What the gate asks of noise on whole updates, and what the ledger says of it."""

import math

from client.gate.policy import Policy
from client.gate.run_history import NOISE, WITHHELD
from client.gate.violations import PolicyViolation
from ept_fed.config.privacy import SitePrivacySettings
from ept_fed.protocol.layout import PayloadLayout

__all__ = ["check_clip", "check_noise", "describe_noise"]


def describe_noise(private: SitePrivacySettings | None) -> dict[str, str]:
    """Return what the ledger says of a proposal with this noise."""
    if private is None:
        return {}
    noise = f"{private.noise} noise on updates of length {private.clip:g} at most"
    return {NOISE: f"{noise}, {'metrics not covered' if private.metrics else WITHHELD}"}


def check_clip(policy: Policy, private: SitePrivacySettings | None, layout: PayloadLayout) -> list[PolicyViolation]:
    """Return what breaks if updates that this site makes noisy may be as long as the run lets them be.

    Args:
        policy: the site's.
        private: the run's noise on whole updates, if it has any.
        layout: that the site made.
    """
    bound, rule = policy.outgoing.update.bound, "outgoing.update"
    if private is None or private.noise == "central":
        return []
    minimum = min(math.prod(shape) for _, shape in layout.shapes)
    longest = private.clip / math.sqrt(minimum)
    if longest <= bound:
        return []
    fix = f"the policy allows {bound:g}; the consortium has to lower federation.site_privacy.clip, or the site to raise"
    return [PolicyViolation(rule, f"a clip of {private.clip:g} lets an update be {longest:.4g}", f"{fix} {rule}.bound")]


def check_noise(policy: Policy, private: SitePrivacySettings | None) -> list[PolicyViolation]:
    """Return what breaks, under a budget, if a run covers whole updates with this noise."""
    budget, rule = policy.outgoing.budget, "outgoing.budget"
    if budget is None or private is None:
        return []
    violations = []
    if private.noise not in budget.noise:
        fix = f"the policy counts on {', '.join(budget.noise) or 'none'} noise; add it to {rule}.noise to believe in it"
        violations.append(PolicyViolation(f"{rule}.noise", private.noise, fix))
    if private.metrics:
        fix = "loss and quality have no noise; the consortium has to set federation.site_privacy.metrics to false"
        violations.append(PolicyViolation(rule, "metrics", fix))
    return violations
