"""Planning of a private round before it begins: its cost, or the reason why the request is refused."""

from client.site.privacy_cost import Mechanism, RoundCost
from ept_fed.config.experiment import TrainingSettings
from ept_fed.config.privacy import PrivacySettings, SitePrivacySettings
from ept_fed.errors import InputRefusedError
from ept_fed.privacy.dp.site_noise import cost_of_round, find_site_noise
from ept_fed.protocol.messages import MessageRefusedError, RoundRequest
from ept_fed.training.private_loop import plan_private_round

__all__ = ["plan_noisy_round", "plan_requested_round"]


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
