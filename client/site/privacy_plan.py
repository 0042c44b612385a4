"""The privacy cost of a round, planned before the round begins; or why it cannot be private as requested."""

import math
from dataclasses import dataclass
from typing import Literal

from ept_fed.config.experiment import TrainingSettings
from ept_fed.config.privacy import PrivacySettings, SitePrivacySettings
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.privacy.dp.accountant import GaussianSteps, find_noise_multiplier
from ept_fed.privacy.dp.site_noise import cost_of_round, find_site_noise
from ept_fed.protocol.messages import MessageRefusedError, RoundRequest
from ept_fed.validation.dp import validate_private_training

__all__ = ["Mechanism", "RoundCost", "plan_noisy_round", "plan_private_round", "plan_requested_round"]

Mechanism = Literal["poisson-subsampled gaussian", "local gaussian", "distributed gaussian", "central gaussian"]


@dataclass(frozen=True)
class RoundCost:
    """The privacy cost of one round at a site.

    Attributes:
        mechanism: noise on the gradients of images, or the source of the noise on whole updates.
        spending: noise, sampling rate and steps for the accountant.
        clip: maximum L2 norm of the gradient of one image, or of an update.
        delta: δ for which the run's ε is stated.
    """

    mechanism: Mechanism
    spending: GaussianSteps
    clip: float
    delta: float


def plan_private_round(settings: TrainingSettings, images: int, rounds: int) -> GaussianSteps:
    """Return noise, sampling rate and steps of one round on at least one image, for accounting before it begins.

    An epoch has as many steps as without privacy, ceil(images / batch_size). With `privacy.epsilon`, σ is the smallest
    noise multiplier with which `rounds` such rounds stay within this epsilon.

    Raises:
        InputRefusedError: for settings that do not fit private training, or an epsilon that no noise can reach.
    """
    privacy = settings.privacy
    problems = validate_private_training(settings)
    if privacy is None:
        problems.append(Problem("training.privacy", None, "is required for training with differential privacy"))
    if problems or privacy is None:
        raise InputRefusedError(problems)
    steps = settings.epochs * math.ceil(images / settings.batch_size)
    rate = min(1.0, settings.batch_size / images)
    if privacy.noise_multiplier is not None:
        return GaussianSteps(privacy.noise_multiplier, rate, steps)
    wanted = float(privacy.epsilon or 0.0)
    try:
        noise = find_noise_multiplier(wanted, privacy.delta, sampling_rate=rate, steps=steps * rounds)
    except ValueError as error:
        raise InputRefusedError([Problem("training.privacy.epsilon", wanted, str(error))]) from error
    return GaussianSteps(noise, rate, steps)


def plan_requested_round(
    settings: TrainingSettings, request: RoundRequest, agreed: PrivacySettings | None, images: int
) -> RoundCost | None:
    """Return the cost of a round with noise on the gradients of images; None if it has no such noise.

    Args:
        settings: training settings of the request.
        request: the server's request.
        agreed: privacy settings that the run began with.
        images: number of the site's training images.

    Raises:
        MessageRefusedError: for other privacy settings than agreed on, or a request that the noise would not cover.
    """
    if settings.privacy != agreed:
        raise MessageRefusedError("training.privacy differs from the setting that this run began with")
    if settings.privacy is None:
        return None
    if request.wants_gradient:
        raise MessageRefusedError("training.privacy: the gradient over all images has no noise and must not leave")
    try:
        spending = plan_private_round(settings, images, request.rounds)
    except InputRefusedError as error:
        fields = ", ".join(problem.field for problem in error.problems)
        raise MessageRefusedError(f"training.privacy does not fit together with {fields}") from error
    return RoundCost("poisson-subsampled gaussian", spending, settings.privacy.clip, settings.privacy.delta)


def plan_noisy_round(settings: SitePrivacySettings, rounds: int) -> RoundCost:
    """Return the cost of each of `rounds` rounds with noise on the whole update.

    Raises:
        ValueError: for an ε that no noise can achieve.
    """
    noise = find_site_noise(settings.noise_multiplier, settings.epsilon, settings.delta, rounds=rounds)
    mechanism: Mechanism = f"{settings.noise} gaussian"  # type: ignore[assignment]
    return RoundCost(mechanism, cost_of_round(noise), settings.clip, settings.delta)
