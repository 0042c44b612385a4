"""Procedural images for the pretraining of the demo backbone: no photograph, no patient, no download.

More than half show stained cells, tissue or lesions (cells.py, tissue.py). The others belong to six families whose
features transfer well according to fractal pretraining (Kataoka et al. 2020) and noise pretraining (Baradad et al.
2021): dead leaves, iterated function systems, Gabor mixtures, power-law noise, cell-like blobs, branching trees. Each
of these is drawn in a random palette. Some are blends of two families, and half are veiled by clouds at a contrast of 3
to 25 %. Every image comes with the parameters of its drawing and with maps of its parts. All random choices use the
generator that the caller passes.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy.ndimage import map_coordinates

from simulations.pretraining.cells import CELL_NUMBERS, draw_cells
from simulations.pretraining.fields import COLOURS, MAPS, Field, Numbers, blur, palette, power_noise, step, unit
from simulations.pretraining.tissue import TISSUE_NUMBERS, draw_lesion, draw_tissue

__all__ = ["FAMILIES", "draw_image"]

GRID = 8
Pixels = npt.NDArray[np.uint8]
STAINED = {"cells": (0.45, draw_cells), "tissue": (0.06, draw_tissue), "lesion": (0.06, draw_lesion)}
ALL_MAPS = (*MAPS, "tone", "relief")
ALL_NUMBERS = (
    *(*CELL_NUMBERS, *COLOURS, *TISSUE_NUMBERS),
    *("leaves", "smallest leaf", "discs", "maps", "contraction", "waves", "frequency", "width", "square"),
    *("exponent", "bend", "cut", "blobs", "blob radius", "blob lobes", "trunks", "branches", "contrast"),
)


def draw_image(
    size: int, rng: np.random.Generator
) -> tuple[Pixels, int, npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Draw one image of a random family.

    Returns:
        pixels (size, size, 3) uint8; the index of the family; the parameters of the drawing, in the order of
        `ALL_NUMBERS`; the mean of each of `ALL_MAPS` over 8 × 8 patches (8, 8, 6). Parameters and maps that the family
        does not have are NaN. Tone and relief are the mean and std of the grey values before a veil.
    """
    numbers, maps = np.full(len(ALL_NUMBERS), np.nan), np.full((GRID, GRID, len(ALL_MAPS)), np.nan)
    family = int(rng.choice(len(FAMILIES), p=_SHARES))
    name = FAMILIES[family]
    if name in STAINED:
        image, drawn, marked = STAINED[name][1](size, rng)
        maps[..., : len(MAPS)] = _patches(marked).mean((1, 3))
    else:
        image, drawn = _PLAIN[name](size, rng)
        if rng.random() < 0.2:
            weight = (power_noise(size, rng, exponent=rng.uniform(1.5, 2.5)) > rng.uniform(0.3, 0.7)).astype(float)
            weight = blur(weight, rng.uniform(0.5, 3))[..., None]
            other = list(_PLAIN.values())[rng.integers(len(_PLAIN))]
            image = weight * image + (1 - weight) * other(size, rng)[0]
    tone = _centre(image.mean(-1))
    if name in _PLAIN and rng.random() < 0.5:
        tone *= rng.choice((-1, 1))
        image, drawn["contrast"] = _veil(tone, rng)
    maps[..., -2] = 0.25 * _patches(tone).mean((1, 3))
    maps[..., -1] = 0.25 * _patches(tone).std((1, 3))
    for key, value in drawn.items():
        numbers[ALL_NUMBERS.index(key)] = value
    if rng.random() < 0.3:
        image = blur(image, rng.uniform(0.3, 1.5))
    image = image + rng.normal(0, rng.uniform(0, 0.03), image.shape)
    pixels = np.asarray(np.clip(255 * image, 0, 255), dtype=np.uint8)
    return pixels, family, numbers.astype(np.float32), maps.astype(np.float32)


def _veil(tone: Field, rng: np.random.Generator) -> tuple[Field, float]:
    """Veil a drawing with smooth clouds and speckle of similar tint; return the image and the log of its contrast."""
    size = len(tone)
    contrast = np.exp(rng.uniform(np.log(0.03), np.log(0.25)))
    clouds = _centre(power_noise(size, rng, exponent=rng.uniform(2.2, 3.5))) * rng.uniform(0, 0.15)
    speckle = _centre(blur(rng.normal(size=(size, size)), rng.uniform(0.4, 2))) * rng.uniform(0, 0.06)
    grey = contrast * tone + clouds + speckle
    tint = rng.uniform(0.3, 0.7) + rng.uniform(-0.15, 0.15, 3)
    return tint + rng.uniform(0.7, 1.2, 3) * grey[..., None], float(np.log(contrast))


def _centre(field: Field) -> Field:
    return (field - field.mean()) / (field.std() + 1e-6)


def _patches(field: Field) -> Field:
    side = len(field) // GRID
    return field.reshape(GRID, side, GRID, side, *field.shape[2:])


def _dead_leaves(size: int, rng: np.random.Generator) -> tuple[Field, Numbers]:
    """Draw discs, boxes and polygons of power-law sizes, each over the earlier ones."""
    colours = palette(rng)(rng.random(64)) * 255
    canvas = Image.new("RGB", (size, size), tuple(int(c) for c in colours[0]))
    draw = ImageDraw.Draw(canvas)
    smallest = rng.uniform(0.02, 0.06)
    kinds = rng.random(3) + 0.05
    leaves = int(rng.integers(20, 220))
    for _ in range(leaves):
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
    numbers = {"leaves": leaves**0.5, "smallest leaf": smallest, "discs": float(kinds[0] / kinds.sum())}
    return np.asarray(canvas, dtype=float) / 255, numbers


def _iterated_functions(size: int, rng: np.random.Generator) -> tuple[Field, Numbers]:
    """Draw the density of a chaos game over two to five contracting affine maps."""
    count = int(rng.integers(2, 6))
    maps = rng.uniform(-1, 1, (count, 2, 2))
    scales = np.linalg.svd(maps, compute_uv=False)[:, 0]
    maps *= (rng.uniform(0.4, 0.85, count) / scales)[:, None, None]
    shifts = rng.uniform(-1, 1, (count, 2))
    points = rng.uniform(-1, 1, (1500, 2))
    visited = []
    for turn in range(40):
        chosen = rng.integers(count, size=len(points))
        points = np.einsum("pij,pj->pi", maps[chosen], points) + shifts[chosen]
        if turn >= 8:
            visited.append(points)
    cloud = np.concatenate(visited)
    low, high = np.percentile(cloud, [1, 99], axis=0)
    x, y = ((cloud - low) / (high - low + 1e-9)).T
    density, _, _ = np.histogram2d(x, y, bins=size, range=[(-0.1, 1.1)] * 2)
    tone = np.log1p(blur(density, rng.uniform(0.4, 1.0)))
    numbers = {"maps": float(count), "contraction": float(np.abs(np.linalg.det(maps)).mean())}
    return palette(rng)(tone / (tone.max() + 1e-9)), numbers


def _gabor_mixture(size: int, rng: np.random.Generator) -> tuple[Field, Numbers]:
    """Draw a few oriented waves under Gaussian windows, or a grating over the whole image."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    tone = np.zeros((size, size))
    waves, square = int(rng.integers(1, 9)), rng.random() < 0.3
    pitch, spread = rng.uniform(np.log(3), np.log(40)), rng.uniform(0, 0.4)
    size_of_window = np.exp(rng.uniform(np.log(0.15), np.log(2)))
    for _ in range(waves):
        angle, frequency = rng.uniform(0, np.pi), np.exp(rng.normal(pitch, spread))
        cx, cy, width = *rng.uniform(-1, 1, 2), size_of_window * rng.uniform(0.7, 1.3)
        window = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / width**2)
        wave = np.sin(frequency * (x * np.cos(angle) + y * np.sin(angle)) + rng.uniform(0, 2 * np.pi))
        tone += window * (np.sign(wave) if square else wave)
    numbers = {
        "waves": float(waves),
        "frequency": pitch,
        "width": float(np.log(size_of_window)),
        "square": float(square),
    }
    return palette(rng)(unit(tone)), numbers


def _warped_noise(size: int, rng: np.random.Generator) -> tuple[Field, Numbers]:
    """Draw power-law noise in a palette, often warped by other noise, sometimes cut at a soft threshold."""
    exponent, reach, cut = rng.uniform(0.8, 2.8), 0.0, 0.0
    tone = power_noise(size, rng, exponent=exponent)
    if rng.random() < 0.6:
        reach = rng.uniform(2, 16)
        bend = [reach * (power_noise(size, rng, exponent=2.5) - 0.5) * 2 for _ in range(2)]
        grid = np.mgrid[0:size, 0:size]
        tone = map_coordinates(tone, [grid[0] + bend[0], grid[1] + bend[1]], order=1, mode="reflect")
    if rng.random() < 0.4:
        tone = 1 / (1 + np.exp(-(tone - rng.uniform(0.3, 0.7)) / rng.uniform(0.01, 0.1)))
        cut = 1.0
    return palette(rng)(unit(tone)), {"exponent": exponent, "bend": reach, "cut": cut}


def _blobs(size: int, rng: np.random.Generator) -> tuple[Field, Numbers]:
    """Draw soft lobed bodies with a rim and round cores on a mottled background, in one palette."""
    y, x = np.mgrid[0 : 1 : size * 1j, 0 : 1 : size * 1j]
    colour = palette(rng)
    ground, body, core, rim = colour(rng.random(4))
    image = ground + 0.1 * (power_noise(size, rng, exponent=2)[..., None] - 0.5)
    count, scale, lobes, bump = (
        int(rng.integers(1, 14)),
        rng.uniform(0.07, 0.3),
        rng.integers(2, 7),
        rng.uniform(0, 0.25),
    )
    for _ in range(count):
        cx, cy, radius = *rng.uniform(0, 1, 2), scale * rng.uniform(0.7, 1.3)
        angle = np.arctan2(y - cy, x - cx)
        distance = np.hypot(x - cx, (y - cy) * rng.uniform(0.7, 1.4))
        outline = radius * (1 + bump * np.sin(lobes * angle + rng.uniform(0, 2 * np.pi)))
        inside = step(outline - distance, 0.01)[..., None]
        image = image * (1 - inside) + body * inside
        edge = np.exp(-(((distance - outline) / 0.015) ** 2))[..., None] * rng.uniform(0, 1)
        image = image * (1 - edge) + rim * edge
        for _ in range(int(rng.integers(0, 4))):
            ox, oy = rng.uniform(-0.5, 0.5, 2) * radius
            grain = step(radius * rng.uniform(0.2, 0.55) - np.hypot(x - cx - ox, y - cy - oy), 0.01)[..., None]
            image = image * (1 - grain) + core * grain
    numbers = {"blobs": float(count), "blob radius": scale, "blob lobes": float(lobes * (bump > 0.06))}
    return np.clip(image, 0, 1), numbers


def _trees(size: int, rng: np.random.Generator) -> tuple[Field, Numbers]:
    """Draw branching lines that become thinner, over a smooth background."""
    colour = palette(rng)
    back = colour(unit(power_noise(size, rng, exponent=3)) * rng.uniform(0.2, 0.6))
    canvas = Image.fromarray(np.asarray(np.clip(back, 0, 1) * 255, dtype=np.uint8))
    draw = ImageDraw.Draw(canvas)
    ink = tuple(int(c) for c in colour(np.array([rng.uniform(0.7, 1.0)]))[0] * 255)
    trunks, branches = int(rng.integers(1, 5)), 0
    waiting = [(*rng.uniform(0, size, 2), rng.uniform(0, 2 * np.pi), rng.uniform(2, 7), 0) for _ in range(trunks)]
    while waiting:
        x, y, angle, width, depth = waiting.pop()
        branches += 1
        length = size * rng.uniform(0.08, 0.25) * 0.9**depth
        x2, y2 = x + length * np.cos(angle), y + length * np.sin(angle)
        draw.line((x, y, x2, y2), fill=ink, width=max(1, round(width)))
        if depth < 6:
            for _ in range(int(rng.integers(1, 3))):
                waiting.append((x2, y2, angle + rng.normal(0, 0.6), width * rng.uniform(0.6, 0.95), depth + 1))
    numbers = {"trunks": float(trunks), "branches": branches**0.5}
    return np.asarray(canvas, dtype=float) / 255, numbers


_PLAIN: dict[str, Callable[[int, np.random.Generator], tuple[Field, Numbers]]] = {
    "dead leaves": _dead_leaves,
    "iterated functions": _iterated_functions,
    "Gabor mixtures": _gabor_mixture,
    "warped noise": _warped_noise,
    "blobs": _blobs,
    "trees": _trees,
}
FAMILIES = (*STAINED, *_PLAIN)
_PLAIN_SHARE = (1 - sum(share for share, _ in STAINED.values())) / len(_PLAIN)
_SHARES = [STAINED[name][0] if name in STAINED else _PLAIN_SHARE for name in FAMILIES]
