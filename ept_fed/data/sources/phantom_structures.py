"""Five kinds of structure as formulas on the plane; they differ in shape, not in brightness.

Every function draws the free parameters of one patient and returns a `Structure`. This is a function from two
coordinate arrays x, y of equal shape, in units of half the image width with (0, 0) at the centre, to values 0–1 of
that shape. Because a structure is a formula, a rotated, shifted or magnified view of a patient is the same formula at
other coordinates.

With s(t) = 1 / (1 + exp(-t)) and d the distance to a centre:

    nodules     max over 1–3 ellipses of s((r - d) / e)
    rings       max over 1–4 circles of exp(-((d - r) / w)²)
    vessels     max over the segments of a branching tree of exp(-(distance / width)²)
    honeycomb   s((Σᵢ cos(kᵢ·(x, y) + φᵢ) - t) / e) · s((R - d) / 0.08), kᵢ 60° apart: cells in a patch
    spiculated  s((r · (1 + a · Σⱼ exp(-((θ - θⱼ) / b)²)) - d) / e): a core with 6–10 spikes at angles θⱼ
"""

from collections.abc import Callable

import numpy as np

__all__ = ["STRUCTURES", "Structure"]

Structure = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _sigmoid(t: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * t))


def _draw_centres(rng: np.random.Generator, count: int, reach: float) -> np.ndarray:
    """Draw (count, 2) points, uniform in a disc of radius `reach`."""
    angle, radius = rng.uniform(0, 2 * np.pi, count), reach * np.sqrt(rng.uniform(0, 1, count))
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _draw_nodules(rng: np.random.Generator) -> Structure:
    count = int(rng.integers(1, 4))
    centres, radii = _draw_centres(rng, count, 0.5), rng.uniform(0.14, 0.34, count)
    stretch, angles, edge = (
        rng.uniform(1.0, 1.3, count),
        rng.uniform(0, np.pi, count),
        rng.uniform(0.02, 0.06),
    )

    def nodules(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        shown = np.zeros_like(x)
        for (cx, cy), radius, ratio, angle in zip(centres, radii, stretch, angles, strict=True):
            along = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
            across = (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
            shown = np.maximum(shown, _sigmoid((radius - np.hypot(along / ratio, across * ratio)) / edge))
        return shown

    return nodules


def _draw_rings(rng: np.random.Generator) -> Structure:
    count = int(rng.integers(1, 5))
    centres, radii = _draw_centres(rng, count, 0.5), rng.uniform(0.15, 0.4, count)
    width = rng.uniform(0.04, 0.08)

    def rings(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        shown = np.zeros_like(x)
        for (cx, cy), radius in zip(centres, radii, strict=True):
            shown = np.maximum(shown, np.exp(-(((np.hypot(x - cx, y - cy) - radius) / width) ** 2)))
        return shown

    return rings


def _draw_vessels(rng: np.random.Generator) -> Structure:
    start = rng.uniform(0, 2 * np.pi)
    stems = [(1.1 * np.cos(start), 1.1 * np.sin(start), start + np.pi + rng.uniform(-0.4, 0.4), 0.07)]
    segments: list[tuple[float, float, float, float, float]] = []
    for _ in range(int(rng.integers(4, 6))):
        grown = []
        for x0, y0, heading, width in stems:
            length = rng.uniform(0.35, 0.6)
            x1, y1 = x0 + length * np.cos(heading), y0 + length * np.sin(heading)
            segments.append((x0, y0, x1, y1, width))
            for side in (-1.0, 1.0):
                grown.append((x1, y1, heading + side * rng.uniform(0.25, 0.8), 0.8 * width))
        stems = grown
    pieces = np.array(segments)

    def vessels(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        shown = np.zeros_like(x)
        for x0, y0, x1, y1, width in pieces:
            dx, dy = x1 - x0, y1 - y0
            along = np.clip(((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy), 0.0, 1.0)
            squared = (x - x0 - along * dx) ** 2 + (y - y0 - along * dy) ** 2
            shown = np.maximum(shown, np.exp(-squared / width**2))
        return shown

    return vessels


def _draw_honeycomb(rng: np.random.Generator) -> Structure:
    (cx, cy), patch = _draw_centres(rng, 1, 0.3)[0], rng.uniform(0.55, 0.95)
    frequency, turn, phases = rng.uniform(12.0, 22.0), rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi, 3)
    threshold, edge = rng.uniform(-0.4, 0.6), rng.uniform(0.2, 0.5)

    def honeycomb(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        waves = np.zeros_like(x)
        for step, phase in enumerate(phases):
            angle = turn + step * np.pi / 3
            waves += np.cos(frequency * (x * np.cos(angle) + y * np.sin(angle)) + phase)
        return _sigmoid((waves - threshold) / edge) * _sigmoid((patch - np.hypot(x - cx, y - cy)) / 0.08)

    return honeycomb


def _draw_spiculated(rng: np.random.Generator) -> Structure:
    (cx, cy), radius = _draw_centres(rng, 1, 0.4)[0], rng.uniform(0.15, 0.26)
    spikes = int(rng.integers(6, 11))
    angles = 2 * np.pi * (np.arange(spikes) + rng.uniform(-0.3, 0.3, spikes)) / spikes + rng.uniform(0, 2 * np.pi)
    lengths, breadth, edge = rng.uniform(0.4, 1.3, spikes), rng.uniform(0.1, 0.18), rng.uniform(0.02, 0.05)

    def spiculated(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        theta, reach = np.arctan2(y - cy, x - cx), np.ones_like(x)
        for angle, length in zip(angles, lengths, strict=True):
            turned = np.mod(theta - angle + np.pi, 2 * np.pi) - np.pi
            reach += length * np.exp(-((turned / breadth) ** 2))
        return _sigmoid((radius * reach - np.hypot(x - cx, y - cy)) / edge)

    return spiculated


STRUCTURES: dict[str, Callable[[np.random.Generator], Structure]] = {
    "nodules": _draw_nodules,
    "rings": _draw_rings,
    "vessels": _draw_vessels,
    "honeycomb": _draw_honeycomb,
    "spiculated": _draw_spiculated,
}
