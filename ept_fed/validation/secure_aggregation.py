"""Validators for secure aggregation: settings that require single updates, which it hides."""

from ept_fed.catalog.strategies import STRATEGIES, count_asked
from ept_fed.config.experiment import FederationSettings
from ept_fed.errors import Problem
from ept_fed.privacy.secure_aggregation.round_session import MAX_EXAMPLES
from ept_fed.privacy.secure_aggregation.session import MIN_SITES

__all__ = ["check_secure_sites", "validate_secure_aggregation"]


def validate_secure_aggregation(federation: FederationSettings) -> list[Problem]:
    """Return the settings that do not fit together with `federation.secure_aggregation`; none if it is null."""
    if federation.secure_aggregation is None:
        return []
    found = []
    strategy = STRATEGIES.get(federation.strategy)
    if strategy is not None and not strategy.mean_suffices:
        known = ", ".join(name for name, info in STRATEGIES.items() if info.mean_suffices)
        fix = f"requires single updates, which secure aggregation hides; choose one of {known}"
        found.append(Problem("federation.strategy", federation.strategy, fix))
    if federation.averaging != "mean":
        fix = "is not a mean of payloads, but secure aggregation gives only a sum; set it to mean"
        found.append(Problem("federation.averaging", federation.averaging, fix))
    if federation.norm_bound is not None:
        fix = "compares the norms of single updates, which are hidden; set it to null: each site's gate bounds its own"
        found.append(Problem("federation.norm_bound", federation.norm_bound, fix))
    if federation.weight_cap is not None and federation.weight_cap > MAX_EXAMPLES:
        fix = f"leaves no room for the sum; the maximum is {MAX_EXAMPLES}"
        found.append(Problem("federation.weight_cap", federation.weight_cap, fix))
    if federation.payload == "raw":
        fix = "may be large, and a masked input has twice its size; set it to folded"
        found.append(Problem("federation.payload", federation.payload, fix))
    return found


def check_secure_sites(federation: FederationSettings, sites: int) -> list[Problem]:
    """Return the settings that are impossible with secure aggregation and so many sites."""
    secure = federation.secure_aggregation
    if secure is None:
        return []
    found = []
    if sites < MIN_SITES:
        fix = (
            f"requires {MIN_SITES} sites, but there are {sites}: of two, each could compute the other's part of the sum"
        )
        found.append(Problem("federation.secure_aggregation", "on", fix))
    if secure.threshold is not None and not sites < 2 * secure.threshold <= 2 * sites:
        fix = f"must be more than half of the {sites} sites, and at most all of them"
        found.append(Problem("federation.secure_aggregation.threshold", secure.threshold, fix))
    if count_asked(federation.sites_per_round, sites) < sites:
        fix = "leaves out sites with which the others share their secrets; set it to 1.0"
        found.append(Problem("federation.sites_per_round", federation.sites_per_round, fix))
    return found
