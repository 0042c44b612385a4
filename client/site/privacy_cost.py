"""What a private round costs a site, in the accountant's numbers and in the run's."""

from dataclasses import dataclass
from typing import Literal

from ept_fed.privacy.dp.accountant import GaussianSteps

__all__ = ["Mechanism", "RoundCost"]

Mechanism = Literal["poisson-subsampled gaussian", "local gaussian", "distributed gaussian", "central gaussian"]


@dataclass(frozen=True)
class RoundCost:
    """What a round will cost a site.

    Attributes:
        mechanism: the noise on gradients of images, or who adds that on whole updates.
        spending: noise, sampling rate and steps, as the accountant counts them.
        clip: longest gradient of an image, or longest update.
        delta: that the run's ε is stated for.
    """

    mechanism: Mechanism
    spending: GaussianSteps
    clip: float
    delta: float
