"""Validators of differential privacy: settings with which the noise would not protect what it should.

`training.privacy` adds noise to the gradients of single images (records), `federation.site_privacy` to the update of a
whole site.
"""

import math

from ept_fed.catalog.strategies import STRATEGIES
from ept_fed.config.experiment import Experiment, FederationSettings, TrainingSettings
from ept_fed.config.privacy import SitePrivacySettings
from ept_fed.errors import Problem
from ept_fed.privacy.dp.site_noise import LARGEST_START, MAX_DEVIATIONS, MIN_STEPS, find_site_noise, split_noise
from ept_fed.privacy.secure_aggregation.fixed_point import FixedPoint
from ept_fed.privacy.secure_aggregation.round_session import count_min_sites

__all__ = ["check_noise_shares", "validate_private_training", "validate_record_dp", "validate_site_dp"]

_SITE_PRIVACY = "federation.site_privacy"


def validate_record_dp(experiment: Experiment) -> list[Problem]:
    """Return the settings that do not fit together with `training.privacy`; none if it is null."""
    if experiment.training.privacy is None:
        return []
    model, federation, personal = experiment.model, experiment.federation, experiment.personalisation
    found = validate_private_training(experiment.training)
    if model.method != "ept" or model.embedding != "concat":
        field, value = ("method", model.method) if model.method != "ept" else ("embedding", model.embedding)
        fix = "has no per-image gradients here; with training.privacy use method ept with embedding concat"
        found.append(Problem(f"model.{field}", value, fix))
    strategy = STRATEGIES.get(federation.strategy)
    if strategy is not None and strategy.wants_gradient:
        fix = "requests the gradient over all images, without noise; leave out training.privacy, or use fedavg"
        found.append(Problem("federation.strategy", federation.strategy, fix))
    if federation.strategy == "qfedavg":
        fix = "weights sites by their training loss, which private training does not send; use fedavg"
        found.append(Problem("federation.strategy", federation.strategy, fix))
    if personal.ditto is not None:
        fix = "trains a second model without noise; leave it out, or training.privacy"
        found.append(Problem("personalisation.ditto", personal.ditto, fix))
    if personal.fine_tune_epochs is not None:
        fix = "trains after the last round, without a share of the budget; leave it out, or training.privacy"
        found.append(Problem("personalisation.fine_tune_epochs", personal.fine_tune_epochs, fix))
    return found


def validate_private_training(training: TrainingSettings) -> list[Problem]:
    """Return the training settings that do not fit together with their own `privacy`; none if it is null."""
    if training.privacy is None:
        return []
    found = []
    if training.head == "lda":
        fix = (
            "is computed from all training images without noise, and prompts trained through it leak all of them; "
            "with training.privacy set it to trained"
        )
        found.append(Problem("training.head", training.head, fix))
    if training.class_balanced:
        fix = "draws images of rare classes more often, which the privacy accountant does not include; set it to false"
        found.append(Problem("training.class_balanced", True, fix))
    if training.head_first_epochs:
        fix = "private training updates all tensors in one step; set it to 0"
        found.append(Problem("training.head_first_epochs", training.head_first_epochs, fix))
    return found


def validate_site_dp(experiment: Experiment) -> list[Problem]:
    """Return the settings that do not fit together with `federation.site_privacy`; none if it is null."""
    federation, private = experiment.federation, experiment.federation.site_privacy
    if private is None:
        return []
    found = _check_noise(private, federation.rounds) + _check_silence(federation, private)
    if experiment.training.privacy is not None:
        fix = "protects single images, and site_privacy whole sites, which includes them; leave one of the two out"
        found.append(Problem("training.privacy", "on", fix))
    strategy = STRATEGIES.get(federation.strategy)
    if strategy is not None and strategy.wants_gradient:
        fix = f"requests the gradient over all images, without noise; leave out {_SITE_PRIVACY}, or use fedavg"
        found.append(Problem("federation.strategy", federation.strategy, fix))
    if private.noise != "local":
        found += _check_mean(federation, private)
    if private.noise == "distributed" and federation.secure_aggregation is None:
        fix = "adds a part of the noise to each update, so updates must be hidden; set secure_aggregation: {}, or local"
        found.append(Problem(f"{_SITE_PRIVACY}.noise", "distributed", fix))
    if private.noise == "central" and federation.secure_aggregation is not None:
        fix = "requires the server to clip updates, which secure aggregation hides from it; set it to distributed"
        found.append(Problem(f"{_SITE_PRIVACY}.noise", "central", fix))
    return found


def check_noise_shares(federation: FederationSettings, sites: int) -> list[Problem]:
    """Return a problem if each site's share of the noise is too small or too large for fixed-point numbers."""
    private, secure = federation.site_privacy, federation.secure_aggregation
    if private is None or secure is None or _check_noise(private, federation.rounds):
        return []
    noise = find_site_noise(private.noise_multiplier, private.epsilon, private.delta, rounds=federation.rounds)
    shares = count_min_sites(sites, secure.threshold) if private.noise == "distributed" else 1
    deviation, numbers = noise * private.clip / math.sqrt(shares), FixedPoint(sites=1, heaviest=1)
    least, room = numbers.step * MIN_STEPS, numbers.bound - LARGEST_START
    if deviation < least:
        fix = f"gives noise below {least:.2g} per site, too little for fixed-point numbers; raise it, or the noise"
        return [Problem(f"{_SITE_PRIVACY}.clip", private.clip, fix)]
    if private.clip + MAX_DEVIATIONS * deviation > room:
        fix = f"with noise of {deviation:.3g} per site exceeds the range of fixed-point numbers; lower it, or the noise"
        return [Problem(f"{_SITE_PRIVACY}.clip", private.clip, fix)]
    return []


def _check_noise(private: SitePrivacySettings, rounds: int) -> list[Problem]:
    """Return the problems of the privacy settings by themselves."""
    if private.adaptive is not None and private.noise != "central":
        fix = f"requires a count over all updates, which does not exist with {private.noise} noise; leave it out"
        return [Problem(f"{_SITE_PRIVACY}.adaptive", "on", fix)]
    try:
        noise = find_site_noise(private.noise_multiplier, private.epsilon, private.delta, rounds=rounds)
    except ValueError as error:
        return [Problem(f"{_SITE_PRIVACY}.epsilon", private.epsilon, str(error))]
    if private.adaptive is not None:
        try:
            split_noise(noise, private.adaptive.count_noise)
        except ValueError as error:
            return [Problem(f"{_SITE_PRIVACY}.adaptive.count_noise", private.adaptive.count_noise, str(error))]
    return []


def _check_silence(federation: FederationSettings, private: SitePrivacySettings) -> list[Problem]:
    """Return the settings that require measures which the sites do not send."""
    found = []
    if federation.strategy == "qfedavg":
        fix = f"weights sites by their training loss, which has no noise; leave out {_SITE_PRIVACY}, or use fedavg"
        found.append(Problem("federation.strategy", federation.strategy, fix))
    if not private.metrics:
        for field in ("patience", "target_auc"):
            if getattr(federation, field) is not None:
                fix = "requires validation AUC, which has no noise and stays at the sites; leave it out, or set "
                found.append(
                    Problem(f"federation.{field}", getattr(federation, field), f"{fix}{_SITE_PRIVACY}.metrics=true")
                )
        if federation.select != "last":
            fix = "requires validation AUC, which has no noise and stays at the sites; set it to last, or set "
            found.append(Problem("federation.select", federation.select, f"{fix}{_SITE_PRIVACY}.metrics=true"))
    return found


def _check_mean(federation: FederationSettings, private: SitePrivacySettings) -> list[Problem]:
    """Return the settings that prevent a mean of updates which each site changes by at most 2C/S."""
    found = []
    strategy = STRATEGIES.get(federation.strategy)
    if strategy is not None and not strategy.mean_suffices and not strategy.wants_gradient:
        known = ", ".join(name for name, info in STRATEGIES.items() if info.mean_suffices)
        fix = f"requires single updates, but the noise is on their mean; choose one of {known}, or noise local"
        found.append(Problem("federation.strategy", federation.strategy, fix))
    if federation.averaging != "mean":
        fix = f"is not a mean, which {private.noise} noise requires; set it to mean"
        found.append(Problem("federation.averaging", federation.averaging, fix))
    if federation.weights != "uniform":
        fix = f"gives large sites a larger part of the sum than {private.noise} noise covers; set it to uniform"
        found.append(Problem("federation.weights", federation.weights, fix))
    if federation.norm_bound is not None:
        fix = "leaves out sites by the others' updates, which noise does not cover; set it to null: updates are clipped"
        found.append(Problem("federation.norm_bound", federation.norm_bound, fix))
    return found
