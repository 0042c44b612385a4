"""Settings of what protects single images, whole sites and single updates."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ept_fed.config.base import Delta, Fraction, Positive, Settings

__all__ = [
    "AdaptiveClipSettings",
    "NoiseSource",
    "PrivacySettings",
    "SecureAggregationSettings",
    "SitePrivacySettings",
]

NoiseSource = Literal["local", "distributed", "central"]


class _NoiseSettings(Settings):
    """How much noise: given as it is, or by what all rounds of the run may cost."""

    noise_multiplier: Positive | None = Field(None, description="σ, standard deviation of the noise over clip")
    epsilon: Positive | None = Field(None, description="what all rounds together cost, if the site is asked in each")

    @model_validator(mode="after")
    def _check_noise(self) -> "_NoiseSettings":
        if (self.noise_multiplier is None) == (self.epsilon is None):
            raise ValueError("set either noise_multiplier or epsilon, and leave the other one out")
        return self


class PrivacySettings(_NoiseSettings):
    """Differentially private training of single images (DP-SGD); see docs/differential-privacy.md.

    Give noise_multiplier or epsilon, not both. An epsilon is what the whole run may cost a site; each site finds the
    noise for it from its own number of images.
    """

    clip: Positive = Field(
        description="C, longest gradient of one image in L2, over sinks, tokens and head together; longer ones are "
        "scaled down to it"
    )
    delta: Delta = Field(
        1e-5, description="probability that epsilon may fail to hold; keep it well below 1 / training images"
    )


class AdaptiveClipSettings(Settings):
    """A clip that follows a quantile of the sites' updates (Andrew et al. 2021); for tens of sites and more."""

    quantile: Fraction = Field(0.5, description="γ, share of the updates that shall not be longer than the clip")
    rate: Positive = Field(0.2, description="η, of the clip's steps: it is multiplied by exp(-η·(share - γ))")
    count_noise: Positive | None = Field(
        None,
        description="standard deviation of the noise on how many updates are not longer; null: twice the noise "
        "multiplier, which leaves the updates 3 % more noise",
    )


class SitePrivacySettings(_NoiseSettings):
    """Differentially private updates of whole sites: clipped, and with noise; see docs/differential-privacy.md.

    Give noise_multiplier or epsilon, not both. ε is for all training images of a site exchanged for any others.
    """

    noise: NoiseSource = Field(
        description="who adds it: local, each site all of it to its own update; distributed, each site its part, which "
        "needs secure_aggregation; central, the server to the mean, and is trusted to"
    )
    clip: Positive = Field(description="C, longest update of a site in L2; longer ones are scaled down to it")
    delta: Delta = Field(1e-5, description="probability that epsilon may fail to hold")
    metrics: bool = Field(
        False, description="whether loss, quality and seconds leave too: they have no noise, and ε does not count them"
    )
    adaptive: AdaptiveClipSettings | None = Field(
        None, description="let the clip follow the updates, from `clip` on; with central noise only"
    )


class SecureAggregationSettings(Settings):
    """Masks that cancel in the sum: the server learns the average of a round's updates and none of them."""

    threshold: Annotated[int, Field(ge=2)] | None = Field(
        None, description="sites that must stay to the end of a round, more than half of all; null: two thirds of them"
    )
