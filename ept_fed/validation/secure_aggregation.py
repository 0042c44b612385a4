"""Settings that need to see what secure aggregation hides: the update of a single site."""

from ept_fed.catalog.strategies import STRATEGIES, count_asked
from ept_fed.config.experiment import FederationSettings
from ept_fed.errors import Problem
from ept_fed.privacy.secure_aggregation.round_session import MAX_EXAMPLES
from ept_fed.privacy.secure_aggregation.session import MIN_SITES

__all__ = ["check_secure_sites", "validate_secure_aggregation"]


def validate_secure_aggregation(federation: FederationSettings) -> list[Problem]:
    """Return what does not go with `federation.secure_aggregation`; nothing where it is null."""
    if federation.secure_aggregation is None:
        return []
    found = []
    strategy = STRATEGIES.get(federation.strategy)
    if strategy is not None and not strategy.mean_suffices:
        known = ", ".join(name for name, info in STRATEGIES.items() if info.mean_suffices)
        fix = f"looks at single updates, which secure aggregation hides; choose one of {known}"
        found.append(Problem("federation.strategy", federation.strategy, fix))
    if federation.averaging != "mean":
        fix = "is no mean of payloads, and a sum is all that secure aggregation gives; set it to mean"
        found.append(Problem("federation.averaging", federation.averaging, fix))
    if federation.norm_bound is not None:
        fix = "compares the lengths of single updates, which nobody sees; set it to null: each gate bounds its own"
        found.append(Problem("federation.norm_bound", federation.norm_bound, fix))
    if federation.weight_cap is not None and federation.weight_cap > MAX_EXAMPLES:
        fix = f"leaves no room for the sum; the most is {MAX_EXAMPLES}"
        found.append(Problem("federation.weight_cap", federation.weight_cap, fix))
    if federation.payload == "raw":
        fix = "may be large, and travels masked at twice its size; set it to folded"
        found.append(Problem("federation.payload", federation.payload, fix))
    return found


def check_secure_sites(federation: FederationSettings, sites: int) -> list[Problem]:
    """Return what secure aggregation makes impossible with so many sites."""
    secure = federation.secure_aggregation
    if secure is None:
        return []
    found = []
    if sites < MIN_SITES:
        fix = f"needs {MIN_SITES} sites: of two, each knows the other's part of the sum; there are {sites}"
        found.append(Problem("federation.secure_aggregation", "on", fix))
    if secure.threshold is not None and not sites < 2 * secure.threshold <= 2 * sites:
        fix = f"must be more than half of {sites} sites, and not more than all"
        found.append(Problem("federation.secure_aggregation.threshold", secure.threshold, fix))
    if count_asked(federation.sites_per_round, sites) < sites:
        fix = "leaves sites out that others share their secrets with; set it to 1.0"
        found.append(Problem("federation.sites_per_round", federation.sites_per_round, fix))
    return found
