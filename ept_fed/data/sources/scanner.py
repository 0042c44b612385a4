"""What a site's scanner does to a scene, as numbers: phantoms are drawn through it, feature shift applies it."""

from dataclasses import dataclass

__all__ = ["AcquisitionProfile"]


@dataclass(frozen=True)
class AcquisitionProfile:
    """How a site's scanner turns a scene into pixels.

    Attributes:
        gain: factor on the intensity.
        gamma: exponent on the intensity, before the gain.
        blur: std of the point spread, in shares of the image width.
        noise: std of the sensor noise, on the 0–1 scale.
        field_of_view: width seen, in scene widths; above 1 shows more and smaller.
        cast: factor per colour channel.
    """

    gain: float
    gamma: float
    blur: float
    noise: float
    field_of_view: float
    cast: tuple[float, float, float] = (1.0, 1.0, 1.0)
