"""The numeric profile of a site's scanner, which phantoms and feature shift apply."""

from dataclasses import dataclass

__all__ = ["AcquisitionProfile"]


@dataclass(frozen=True)
class AcquisitionProfile:
    """The parameters with which a site's scanner converts a scene into pixels.

    Attributes:
        gain: factor on the intensity.
        gamma: exponent on the intensity, before the gain.
        blur: std of the point spread, in shares of the image width.
        noise: std of the sensor noise, on the 0–1 scale.
        field_of_view: visible width, in scene widths; above 1 the scanner shows more of the scene, at a smaller size.
        cast: factor per colour channel.
    """

    gain: float
    gamma: float
    blur: float
    noise: float
    field_of_view: float
    cast: tuple[float, float, float] = (1.0, 1.0, 1.0)
