"""Settings with which noise on whole updates would not be what it says, or would be added by nobody."""

import math

from ept_fed.catalog.strategies import STRATEGIES
from ept_fed.config.experiment import Experiment, FederationSettings
from ept_fed.config.privacy import SitePrivacySettings
from ept_fed.errors import Problem
from ept_fed.privacy.dp.site_noise import LARGEST_START, MAX_DEVIATIONS, MIN_STEPS, find_site_noise, split_noise
from ept_fed.privacy.secure_aggregation.fixed_point import FixedPoint
from ept_fed.privacy.secure_aggregation.round_session import count_min_sites

__all__ = ["check_noise_shares", "validate_site_dp"]

_FIELD = "federation.site_privacy"


def validate_site_dp(experiment: Experiment) -> list[Problem]:
    """Return what does not go with `federation.site_privacy`; nothing where it is null."""
    federation, private = experiment.federation, experiment.federation.site_privacy
    if private is None:
        return []
    found = _check_noise(private, federation.rounds) + _check_silence(federation, private)
    if experiment.training.privacy is not None:
        fix = "is noise for single images, and this for whole sites, which covers them; leave one of the two out"
        found.append(Problem("training.privacy", "on", fix))
    strategy = STRATEGIES.get(federation.strategy)
    if strategy is not None and strategy.wants_gradient:
        fix = f"asks for the gradient over all images, without noise; leave out {_FIELD}, or use fedavg"
        found.append(Problem("federation.strategy", federation.strategy, fix))
    if private.noise != "local":
        found += _check_mean(federation, private)
    if private.noise == "distributed" and federation.secure_aggregation is None:
        fix = "gives each update a part of the noise, so nobody may see one; set secure_aggregation: {}, or take local"
        found.append(Problem(f"{_FIELD}.noise", "distributed", fix))
    if private.noise == "central" and federation.secure_aggregation is not None:
        fix = "clips updates that secure aggregation hides from the server; set it to distributed"
        found.append(Problem(f"{_FIELD}.noise", "central", fix))
    return found


def check_noise_shares(federation: FederationSettings, sites: int) -> list[Problem]:
    """Return what fixed point makes impossible with noise in so many shares: shares too small for it, or too large."""
    private, secure = federation.site_privacy, federation.secure_aggregation
    if private is None or secure is None or _check_noise(private, federation.rounds):
        return []
    noise = find_site_noise(private.noise_multiplier, private.epsilon, private.delta, rounds=federation.rounds)
    shares = count_min_sites(sites, secure.threshold) if private.noise == "distributed" else 1
    deviation, numbers = noise * private.clip / math.sqrt(shares), FixedPoint(sites=1, heaviest=1)
    least, room = numbers.step * MIN_STEPS, numbers.bound - LARGEST_START
    if deviation < least:
        fix = f"makes noise below {least:.2g} a site, which fixed-point numbers do not hold; raise it, or the noise"
        return [Problem(f"{_FIELD}.clip", private.clip, fix)]
    if private.clip + MAX_DEVIATIONS * deviation > room:
        fix = f"with noise of {deviation:.3g} a site reaches beyond fixed-point numbers; lower it, or the noise"
        return [Problem(f"{_FIELD}.clip", private.clip, fix)]
    return []


def _check_noise(private: SitePrivacySettings, rounds: int) -> list[Problem]:
    """Return what is wrong with the numbers by themselves."""
    if private.adaptive is not None and private.noise != "central":
        fix = f"takes a count of all updates, which with {private.noise} noise nobody has; leave it out"
        return [Problem(f"{_FIELD}.adaptive", "on", fix)]
    try:
        noise = find_site_noise(private.noise_multiplier, private.epsilon, private.delta, rounds=rounds)
    except ValueError as error:
        return [Problem(f"{_FIELD}.epsilon", private.epsilon, str(error))]
    if private.adaptive is not None:
        try:
            split_noise(noise, private.adaptive.count_noise)
        except ValueError as error:
            return [Problem(f"{_FIELD}.adaptive.count_noise", private.adaptive.count_noise, str(error))]
    return []


def _check_silence(federation: FederationSettings, private: SitePrivacySettings) -> list[Problem]:
    """Return what needs numbers that do not leave."""
    found = []
    if federation.strategy == "qfedavg":
        fix = f"weighs sites by their training loss, which has no noise; leave out {_FIELD}, or use fedavg"
        found.append(Problem("federation.strategy", federation.strategy, fix))
    if not private.metrics:
        for field in ("patience", "target_auc"):
            if getattr(federation, field) is not None:
                fix = "watches validation AUC, which has no noise and stays at the sites; leave it out, or set "
                found.append(Problem(f"federation.{field}", getattr(federation, field), f"{fix}{_FIELD}.metrics=true"))
    return found


def _check_mean(federation: FederationSettings, private: SitePrivacySettings) -> list[Problem]:
    """Return what makes of updates something else than a mean that each site moves by 2C/S at most."""
    found = []
    strategy = STRATEGIES.get(federation.strategy)
    if strategy is not None and not strategy.mean_suffices and not strategy.wants_gradient:
        known = ", ".join(name for name, info in STRATEGIES.items() if info.mean_suffices)
        fix = f"looks at single updates, and the noise is on their mean; choose one of {known}, or noise local"
        found.append(Problem("federation.strategy", federation.strategy, fix))
    if federation.averaging != "mean":
        fix = f"is no mean, which is what {private.noise} noise is for; set it to mean"
        found.append(Problem("federation.averaging", federation.averaging, fix))
    if federation.weights != "uniform":
        fix = f"gives a large site more than its part of the sum, which {private.noise} noise hides; set it to uniform"
        found.append(Problem("federation.weights", federation.weights, fix))
    if federation.norm_bound is not None:
        fix = "leaves sites out by what the others sent, which no noise hides; set it to null: updates are clipped"
        found.append(Problem("federation.norm_bound", federation.norm_bound, fix))
    return found
