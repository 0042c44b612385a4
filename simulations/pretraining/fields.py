"""Noise, palettes, stains and soft outlines, from which the families of procedural images are built."""

from collections.abc import Callable
from functools import cache

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

__all__ = [
    "COLOURS",
    "MAPS",
    "Field",
    "Numbers",
    "Stain",
    "blur",
    "ellipse",
    "name_colours",
    "palette",
    "place_grid",
    "power_noise",
    "step",
    "unit",
]

Field = npt.NDArray[np.float64]
Numbers = dict[str, float]
MAPS = ("body", "nucleus", "granule", "ground disc")
COLOURS = tuple(f"{name} {channel}" for name in ("ground", "body", "nucleus", "granule") for channel in "rgb")


def palette(rng: np.random.Generator) -> Callable[[Field], Field]:
    """Return a smooth map from 0–1 to RGB: a cosine per channel between two random colours, or sometimes greys."""
    middle, spread = rng.uniform(0.25, 0.75, 3), rng.uniform(0.1, 0.5, 3)
    turns, phase = rng.uniform(0.3, 1.5, 3), rng.uniform(0, 1, 3)
    if rng.random() < 0.2:
        middle, spread, turns, phase = (np.full(3, values[0]) for values in (middle, spread, turns, phase))

    def colour(tone: Field) -> Field:
        waves = np.cos(2 * np.pi * (turns * np.asarray(tone)[..., None] + phase))
        return np.clip(middle + spread * waves, 0, 1)

    return colour


def power_noise(size: int, rng: np.random.Generator, *, exponent: float) -> Field:
    """Return noise (size, size) in 0–1 with an amplitude spectrum that falls as frequency^-exponent."""
    frequency = _frequencies(size)
    phases = rng.uniform(0, 2 * np.pi, frequency.shape)
    spectrum = np.exp(1j * phases) / frequency**exponent
    spectrum[0, 0] = 0
    return unit(np.fft.irfft2(spectrum, s=(size, size)))


def place_grid(size: int) -> tuple[Field, Field]:
    """Return y and x (size, size), from 0 to 1."""
    y, x = np.mgrid[0 : 1 : size * 1j, 0 : 1 : size * 1j]
    return y, x


def blur(field: Field, sigma: float) -> Field:
    """Smooth the first two axes by a Gaussian of sigma pixels."""
    smooth: Field = gaussian_filter(field, (sigma, sigma) + (0,) * (field.ndim - 2))
    return smooth


def unit(field: Field) -> Field:
    """Scale a field linearly to 0–1."""
    low, high = field.min(), field.max()
    return (field - low) / (high - low + 1e-9)


def step(distance: Field, softness: float) -> Field:
    """Return 1 where distance is positive, 0 where it is negative, with a soft edge."""
    return 0.5 * (1 + np.tanh(distance / softness))


def ellipse(x: Field, y: Field, centre: Field, radius: float, squeeze: float, rng: np.random.Generator) -> Field:
    """Return the distance from the centre of an ellipse at a random angle, in units of its radius: 1 on the outline."""
    angle = rng.uniform(0, np.pi)
    cos, sin = np.cos(angle), np.sin(angle)
    u, v = (x - centre[0]) * cos + (y - centre[1]) * sin, (y - centre[1]) * cos - (x - centre[0]) * sin
    return np.hypot(u * np.sqrt(squeeze), v / np.sqrt(squeeze)) / radius


class Stain:
    """Random colours of ground, red cells, cytoplasm, nucleus and granules, mostly in the hues of common stains."""

    def __init__(self, rng: np.random.Generator) -> None:
        hues = (
            rng.uniform((0.02, 0.9, 0.6, 0.66, 0.7), (0.2, 1.1, 1.1, 0.84, 1.1))
            if rng.random() < 0.65
            else rng.random(5)
        )
        self.ground = np.exp(-_absorbance(hues[0], rng) * rng.uniform(0, 0.35))
        self.red = _absorbance(hues[1], rng) * rng.uniform(0.1, 0.5)
        self.body = _absorbance(hues[2], rng) * rng.uniform(0.1, 1.0)
        self.nucleus = _absorbance(hues[3], rng) * rng.uniform(0.9, 2.6)
        near = rng.random() < 0.4
        self.granule = (
            self.nucleus * rng.uniform(0.6, 1.2) if near else _absorbance(hues[4], rng) * rng.uniform(0.3, 1.6)
        )

    def colours(self) -> Numbers:
        """Return the colour channels of ground, body, nucleus and granule, with the names in `COLOURS`."""
        return name_colours(
            ground=self.ground, body=np.exp(-self.body), nucleus=np.exp(-self.nucleus), granule=np.exp(-self.granule)
        )


def name_colours(**colours: Field) -> Numbers:
    """Return the channels of the given colours, with the names in `COLOURS`."""
    return {
        f"{name} {channel}": float(value)
        for name, colour in colours.items()
        for channel, value in zip("rgb", colour, strict=True)
    }


def _absorbance(hue: float, rng: np.random.Generator) -> Field:
    channel = np.clip(np.abs((hue * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1, 0, 1)
    return rng.uniform(0.1, 0.7) + rng.uniform(0.2, 1.0) * (1 - channel)


@cache
def _frequencies(size: int) -> Field:
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    frequency[0, 0] = 1
    return frequency
