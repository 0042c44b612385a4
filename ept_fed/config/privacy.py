"""Settings that protect single images, whole sites and single updates."""

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
    """Amount of noise, given as a noise multiplier or as the ε of all rounds of the run."""

    noise_multiplier: Positive | None = Field(None, description="σ, standard deviation of the noise over clip")
    epsilon: Positive | None = Field(
        None, description="ε of all rounds together, if the site is selected in every round"
    )

    @model_validator(mode="after")
    def _check_noise(self) -> "_NoiseSettings":
        if (self.noise_multiplier is None) == (self.epsilon is None):
            raise ValueError("set either noise_multiplier or epsilon, and leave the other one out")
        return self


class PrivacySettings(_NoiseSettings):
    """Differentially private training of single images (DP-SGD); see docs/differential-privacy.md.

    Give noise_multiplier or epsilon, not both. An epsilon is the privacy budget of a site for the whole run; each site
    computes the noise for it from its own number of images.
    """

    clip: Positive = Field(
        description="C, maximum L2 norm of the gradient of one image, over sinks, tokens and head together; longer "
        "gradients are scaled down to it"
    )
    delta: Delta = Field(
        1e-5, description="probability that the ε bound does not hold; keep it well below 1 / training images"
    )


class AdaptiveClipSettings(Settings):
    """A clip that follows a quantile of the sites' update norms (Andrew et al. 2021); for tens of sites and more."""

    quantile: Fraction = Field(0.5, description="γ, target share of the updates that are not longer than the clip")
    rate: Positive = Field(
        0.2, description="η, learning rate of the clip: each round multiplies the clip by exp(-η·(share - γ))"
    )
    count_noise: Positive | None = Field(
        None,
        description="standard deviation of the noise on the number of updates that are not longer than the clip; null: "
        "twice the noise multiplier, which leaves the updates 3 % more noise",
    )


class SitePrivacySettings(_NoiseSettings):
    """Differentially private updates of whole sites, clipped and with noise; see docs/differential-privacy.md.

    Give noise_multiplier or epsilon, not both. ε bounds the effect of replacing all training images of a site by any
    others.
    """

    noise: NoiseSource = Field(
        description="who adds the noise. local: each site adds all of it to its own update; distributed: each site "
        "adds a part, which requires secure_aggregation; central: a trusted server adds it to the mean"
    )
    clip: Positive = Field(description="C, maximum L2 norm of a site's update; longer updates are scaled down to it")
    delta: Delta = Field(1e-5, description="probability that the ε bound does not hold")
    metrics: bool = Field(
        False,
        description="whether sites also send loss, quality and seconds, which have no noise and are not covered by ε",
    )
    adaptive: AdaptiveClipSettings | None = Field(
        None, description="adapt the clip to the updates, starting from `clip`; with central noise only"
    )


class SecureAggregationSettings(Settings):
    """Secure aggregation: masks cancel in the sum, so the server learns only the average of a round's updates."""

    threshold: Annotated[int, Field(ge=2)] | None = Field(
        None,
        description="minimum sites that must complete a round, more than half of all sites; null: two thirds of them",
    )
