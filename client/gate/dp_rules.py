"""The gate's checks of noise on whole updates, and the ledger's description of that noise."""

import math

from client.gate.policy import Policy
from client.gate.run_history import NOISE, WITHHELD
from client.gate.violations import PolicyViolation
from ept_fed.config.privacy import SitePrivacySettings
from ept_fed.protocol.layout import PayloadLayout

__all__ = ["check_clip", "check_noise", "describe_noise"]


def describe_noise(private: SitePrivacySettings | None) -> dict[str, str]:
    """Return the ledger's description of a proposal with this noise."""
    if private is None:
        return {}
    noise = f"{private.noise} noise on updates of length {private.clip:g} at most"
    return {NOISE: f"{noise}, {'metrics not covered' if private.metrics else WITHHELD}"}


def check_clip(policy: Policy, private: SitePrivacySettings | None, layout: PayloadLayout) -> list[PolicyViolation]:
    """Return the violations if the run's clip allows longer updates than the policy does.

    Only updates to which a site adds noise are checked here.

    Args:
        policy: the site's.
        private: the run's noise on whole updates, if it has any.
        layout: the layout that the site made.
    """
    bound, rule = policy.outgoing.update.bound, "outgoing.update"
    if private is None or private.noise == "central":
        return []
    minimum = min(math.prod(shape) for _, shape in layout.shapes)
    longest = private.clip / math.sqrt(minimum)
    if longest <= bound:
        return []
    fix = f"the policy allows {bound:g}; the consortium has to lower federation.site_privacy.clip, or the site to raise"
    return [PolicyViolation(rule, f"clip {private.clip:g} allows an update of {longest:.4g}", f"{fix} {rule}.bound")]


def check_noise(policy: Policy, private: SitePrivacySettings | None) -> list[PolicyViolation]:
    """Return the violations of a privacy budget by a run with this noise on whole updates."""
    budget, rule = policy.outgoing.budget, "outgoing.budget"
    if budget is None or private is None:
        return []
    violations = []
    if private.noise not in budget.noise:
        fix = f"the policy trusts {', '.join(budget.noise) or 'no'} noise; add it to {rule}.noise to trust it too"
        violations.append(PolicyViolation(f"{rule}.noise", private.noise, fix))
    if private.metrics:
        fix = "loss and quality have no noise; the consortium has to set federation.site_privacy.metrics to false"
        violations.append(PolicyViolation(rule, "metrics", fix))
    return violations
