"""What a private round will cost, before it begins; or why it cannot be private as it is asked for."""

from ept_fed.config import PrivacySettings, TrainingSettings
from ept_fed.privacy.accountant import GaussianSteps
from ept_fed.problems import InputRefusedError
from ept_fed.protocol.messages import MessageRefusedError, RoundRequest
from ept_fed.training.private_loop import plan_private_round

__all__ = ["plan_requested_round"]


def plan_requested_round(
    settings: TrainingSettings, request: RoundRequest, agreed: PrivacySettings | None, images: int
) -> GaussianSteps | None:
    """Return noise, sampling rate and steps of the round; None where the run is not private.

    Args:
        settings: of the request.
        request: the server's.
        agreed: what the run began with.
        images: the site's training images.

    Raises:
        MessageRefusedError: for other privacy than was agreed on, or a request that the noise would not cover.
    """
    if settings.privacy != agreed:
        raise MessageRefusedError("training.privacy is not what this run began with")
    if settings.privacy is None:
        return None
    if request.wants_gradient:
        raise MessageRefusedError("training.privacy: the gradient over all images has no noise, and stays here")
    try:
        return plan_private_round(settings, images, request.rounds)
    except InputRefusedError as error:
        fields = ", ".join(problem.field for problem in error.problems)
        raise MessageRefusedError(f"training.privacy does not go with {fields}") from error
