"""The privacy cost of a round at a site: the numbers for the accountant, and the run's own settings."""

from dataclasses import dataclass
from typing import Literal

from ept_fed.privacy.dp.accountant import GaussianSteps

__all__ = ["Mechanism", "RoundCost"]

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
