"""Procedural images to pretrain the demo backbone on: no photograph, no patient, no download.

Six families, after what fractal pretraining (Kataoka et al. 2020) and noise pretraining (Baradad et al. 2021) found to
transfer: dead leaves, iterated function systems, Gabor mixtures, power-law noise, cell-like blobs, branching trees.
Each is drawn in a random palette, sometimes two are blended, and every choice comes from the generator passed in.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter, map_coordinates

__all__ = ["FAMILIES", "draw_image"]

Field = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]


def draw_image(size: int, rng: np.random.Generator) -> Pixels:
    """Draw one image (size, size, 3) uint8 of a random family, or a blend of two."""
    image = _draw_family(size, rng)
    if rng.random() < 0.3:
        weight = (_power_noise(size, rng, exponent=rng.uniform(1.5, 2.5)) > rng.uniform(0.3, 0.7))[..., None]
        weight = gaussian_filter(weight.astype(float), (rng.uniform(0.5, 3),) * 2 + (0,))
        image = weight * image + (1 - weight) * _draw_family(size, rng)
    if rng.random() < 0.3:
        image = gaussian_filter(image, (rng.uniform(0.3, 1.5),) * 2 + (0,))
    image = image + rng.normal(0, rng.uniform(0, 0.03), image.shape)
    return np.asarray(np.clip(255 * image, 0, 255), dtype=np.uint8)


def _draw_family(size: int, rng: np.random.Generator) -> Field:
    families = list(FAMILIES.values())
    return families[rng.integers(len(families))](size, rng)


def _dead_leaves(size: int, rng: np.random.Generator) -> Field:
    """Discs, boxes and polygons of power-law sizes, each hiding what lies below it."""
    colours = _palette(rng)(rng.random(64)) * 255
    canvas = Image.new("RGB", (size, size), tuple(int(c) for c in colours[0]))
    draw = ImageDraw.Draw(canvas)
    smallest = rng.uniform(0.02, 0.06)
    kinds = rng.random(3) + 0.05
    for _ in range(int(rng.integers(60, 220))):
        radius = size * smallest / rng.uniform(0.06, 1) ** rng.uniform(0.5, 1.0)
        x, y = rng.uniform(-0.1, 1.1, 2) * size
        colour = tuple(int(c) for c in colours[rng.integers(64)])
        kind = rng.choice(3, p=kinds / kinds.sum())
        if kind == 0:
            ratio = rng.uniform(0.5, 1)
            draw.ellipse((x - radius, y - radius * ratio, x + radius, y + radius * ratio), fill=colour)
        else:
            corners = 4 if kind == 1 else int(rng.integers(3, 8))
            angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
            draw.polygon([(x + radius * np.cos(a), y + radius * np.sin(a)) for a in angles], fill=colour)
    return np.asarray(canvas, dtype=float) / 255


def _iterated_functions(size: int, rng: np.random.Generator) -> Field:
    """The density of a chaos game over two to five contracting affine maps."""
    count = int(rng.integers(2, 6))
    maps = rng.uniform(-1, 1, (count, 2, 2))
    scales = np.linalg.svd(maps, compute_uv=False)[:, 0]
    maps *= (rng.uniform(0.4, 0.85, count) / scales)[:, None, None]
    shifts = rng.uniform(-1, 1, (count, 2))
    points = rng.uniform(-1, 1, (1500, 2))
    visited = []
    for step in range(40):
        chosen = rng.integers(count, size=len(points))
        points = np.einsum("pij,pj->pi", maps[chosen], points) + shifts[chosen]
        if step >= 8:
            visited.append(points)
    cloud = np.concatenate(visited)
    low, high = np.percentile(cloud, [1, 99], axis=0)
    x, y = ((cloud - low) / (high - low + 1e-9)).T
    density, _, _ = np.histogram2d(x, y, bins=size, range=[(-0.1, 1.1)] * 2)
    tone = np.log1p(gaussian_filter(density, rng.uniform(0.4, 1.0)))
    return _palette(rng)(tone / (tone.max() + 1e-9))


def _gabor_mixture(size: int, rng: np.random.Generator) -> Field:
    """A few oriented waves under Gaussian windows, or a full-frame grating."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    tone = np.zeros((size, size))
    for _ in range(int(rng.integers(1, 9))):
        angle, frequency = rng.uniform(0, np.pi), np.exp(rng.uniform(np.log(2), np.log(40)))
        cx, cy, width = *rng.uniform(-1, 1, 2), rng.uniform(0.15, 2)
        window = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / width**2)
        wave = np.sin(frequency * (x * np.cos(angle) + y * np.sin(angle)) + rng.uniform(0, 2 * np.pi))
        tone += window * (np.sign(wave) if rng.random() < 0.3 else wave)
    return _palette(rng)(_unit(tone))


def _warped_noise(size: int, rng: np.random.Generator) -> Field:
    """Power-law noise, bent by more of it, in a palette; sometimes cut at a threshold."""
    tone = _power_noise(size, rng, exponent=rng.uniform(0.8, 2.8))
    if rng.random() < 0.6:
        reach = rng.uniform(2, 16)
        bend = [reach * (_power_noise(size, rng, exponent=2.5) - 0.5) * 2 for _ in range(2)]
        grid = np.mgrid[0:size, 0:size]
        tone = map_coordinates(tone, [grid[0] + bend[0], grid[1] + bend[1]], order=1, mode="reflect")
    if rng.random() < 0.4:
        tone = 1 / (1 + np.exp(-(tone - rng.uniform(0.3, 0.7)) / rng.uniform(0.01, 0.1)))
    return _palette(rng)(_unit(tone))


def _blobs(size: int, rng: np.random.Generator) -> Field:
    """Soft bodies with a rim and lobed cores on a mottled ground, in one palette."""
    y, x = np.mgrid[0 : 1 : size * 1j, 0 : 1 : size * 1j]
    palette = _palette(rng)
    ground, body, core, rim = palette(rng.random(4))
    image = ground + 0.1 * (_power_noise(size, rng, exponent=2)[..., None] - 0.5)
    for _ in range(int(rng.integers(1, 14))):
        cx, cy, radius = *rng.uniform(0, 1, 2), rng.uniform(0.05, 0.35)
        angle, lobes, bump = np.arctan2(y - cy, x - cx), rng.integers(2, 7), rng.uniform(0, 0.25)
        distance = np.hypot(x - cx, (y - cy) * rng.uniform(0.7, 1.4))
        outline = radius * (1 + bump * np.sin(lobes * angle + rng.uniform(0, 2 * np.pi)))
        inside = _step(outline - distance, 0.01)[..., None]
        image = image * (1 - inside) + body * inside
        edge = np.exp(-(((distance - outline) / 0.015) ** 2))[..., None] * rng.uniform(0, 1)
        image = image * (1 - edge) + rim * edge
        for _ in range(int(rng.integers(0, 4))):
            ox, oy = rng.uniform(-0.5, 0.5, 2) * radius
            grain = _step(radius * rng.uniform(0.2, 0.55) - np.hypot(x - cx - ox, y - cy - oy), 0.01)[..., None]
            image = image * (1 - grain) + core * grain
    return np.clip(image, 0, 1)


def _trees(size: int, rng: np.random.Generator) -> Field:
    """Branching lines that thin out, over a gradient."""
    palette = _palette(rng)
    back = palette(_unit(_power_noise(size, rng, exponent=3)) * rng.uniform(0.2, 0.6))
    canvas = Image.fromarray(np.asarray(np.clip(back, 0, 1) * 255, dtype=np.uint8))
    draw = ImageDraw.Draw(canvas)
    ink = tuple(int(c) for c in palette(np.array([rng.uniform(0.7, 1.0)]))[0] * 255)
    waiting = [
        (*rng.uniform(0, size, 2), rng.uniform(0, 2 * np.pi), rng.uniform(2, 7), 0) for _ in range(rng.integers(1, 5))
    ]
    while waiting:
        x, y, angle, width, depth = waiting.pop()
        length = size * rng.uniform(0.08, 0.25) * 0.9**depth
        x2, y2 = x + length * np.cos(angle), y + length * np.sin(angle)
        draw.line((x, y, x2, y2), fill=ink, width=max(1, round(width)))
        if depth < 6:
            for _ in range(int(rng.integers(1, 3))):
                waiting.append((x2, y2, angle + rng.normal(0, 0.6), width * rng.uniform(0.6, 0.95), depth + 1))
    return np.asarray(canvas, dtype=float) / 255


FAMILIES: dict[str, Callable[[int, np.random.Generator], Field]] = {
    "dead leaves": _dead_leaves,
    "iterated functions": _iterated_functions,
    "Gabor mixtures": _gabor_mixture,
    "warped noise": _warped_noise,
    "blobs": _blobs,
    "trees": _trees,
}


def _palette(rng: np.random.Generator) -> Callable[[Field], Field]:
    """Return a smooth map from 0–1 to RGB: a cosine per channel between two random colours."""
    middle, spread = rng.uniform(0.25, 0.75, 3), rng.uniform(0.1, 0.5, 3)
    turns, phase = rng.uniform(0.3, 1.5, 3), rng.uniform(0, 1, 3)
    if rng.random() < 0.2:
        middle, spread, turns, phase = (np.full(3, values[0]) for values in (middle, spread, turns, phase))

    def colour(tone: Field) -> Field:
        waves = np.cos(2 * np.pi * (turns * np.asarray(tone)[..., None] + phase))
        return np.clip(middle + spread * waves, 0, 1)

    return colour


def _power_noise(size: int, rng: np.random.Generator, *, exponent: float) -> Field:
    """Noise (size, size) in 0–1 whose amplitude spectrum falls as frequency^-exponent."""
    fy, fx = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :]
    frequency = np.hypot(fy, fx)
    frequency[0, 0] = 1
    phases = rng.uniform(0, 2 * np.pi, frequency.shape)
    spectrum = np.exp(1j * phases) / frequency**exponent
    spectrum[0, 0] = 0
    return _unit(np.fft.irfft2(spectrum, s=(size, size)))


def _unit(field: Field) -> Field:
    low, high = field.min(), field.max()
    return (field - low) / (high - low + 1e-9)


def _step(distance: Field, softness: float) -> Field:
    return 0.5 * (1 + np.tanh(distance / softness))
