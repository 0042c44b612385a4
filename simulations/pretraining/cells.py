"""Procedural images of stained cells, with the parameters of each drawing and maps of its parts.

Every quantity (size, lobes, granules, stain, ...) is drawn independently, so no image shows a real type of cell. To
distinguish real types, a network must measure each quantity. Training on the parameters teaches it these measurements.
"""

from itertools import pairwise

import numpy as np

from simulations.pretraining.fields import MAPS, Field, Numbers, Stain, blur, ellipse, place_grid, power_noise, step

__all__ = ["CELL_NUMBERS", "draw_cells"]

CELL_NUMBERS = (
    *("cell radius", "cells", "nucleus share", "nucleus roundness", "lobes", "bridge", "off centre", "chromatin"),
    *("chromatin grain", "granules", "granule size", "granules on nucleus", "vacuoles", "rough outline", "red cells"),
)


def draw_cells(size: int, rng: np.random.Generator) -> tuple[Field, Numbers, Field]:
    """Draw one large cell, or a few small cells of one kind, among pale discs on a tinted background.

    Returns:
        image (size, size, 3) in 0–1; its `CELL_NUMBERS` and `COLOURS`; its `MAPS` (size, size, 4).
    """
    y, x = place_grid(size)
    stain = Stain(rng)
    image = np.ones((size, size, 3)) * stain.ground
    image *= 1 + rng.uniform(0, 0.12) * (power_noise(size, rng, exponent=2.5) - 0.5)[..., None]
    reds = int(rng.integers(0, 15)) if rng.random() < 0.85 else 0
    red_radius = rng.uniform(0.07, 0.2)
    dent, dent_width = rng.uniform(0, 0.9), rng.uniform(0.3, 0.7)
    maps = np.zeros((size, size, len(MAPS)))
    for _ in range(reds):
        shape = ellipse(x, y, rng.uniform(-0.1, 1.1, 2), red_radius * rng.uniform(0.8, 1.2), rng.uniform(0.7, 1), rng)
        disc = step(1 - shape, 0.08) * (1 - dent * np.exp(-((shape / dent_width) ** 2)))
        image *= np.exp(-disc[..., None] * stain.red)
        maps[..., 3] = np.maximum(maps[..., 3], shape < 1)
    single = rng.random() < 0.75
    count = 1 if single else int(rng.integers(2, 6))
    radius = rng.uniform(0.11, 0.46) if single else rng.uniform(0.1, 0.22)
    cell = _Cell(rng)
    measured: list[Numbers] = []
    for _ in range(count):
        centre = 0.5 + rng.normal(0, 0.05, 2) if single else rng.uniform(0.1, 0.9, 2)
        image, numbers = cell.draw(
            image, maps, x, y, centre, radius * (1 if single else rng.uniform(0.85, 1.15)), stain, rng
        )
        measured.append(numbers)
    for _ in range(int(rng.integers(0, 4)) if rng.random() < 0.4 else 0):
        speck = ellipse(x, y, rng.uniform(0, 1, 2), rng.uniform(0.01, 0.04), rng.uniform(0.6, 1), rng)
        image *= np.exp(-step(1 - speck, 0.3)[..., None] * stain.nucleus * rng.uniform(0.2, 0.8))
    numbers = {name: float(np.mean([one[name] for one in measured])) for name in measured[0]}
    numbers |= {"cell radius": float(np.log(radius)), "cells": float(np.log(count)), "red cells": reds**0.5}
    numbers |= stain.colours()
    if rng.random() < 0.06:
        image = 1 - image
    return np.clip(image, 0, 1), numbers, maps


class _Cell:
    """One kind of cell: the properties that all cells of an image share."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.lobes = int(rng.choice(5, p=(0.45, 0.2, 0.17, 0.1, 0.08))) + 1
        self.bridge = rng.uniform(0.1, 1.0)
        self.indent = rng.uniform(0, 0.8) if rng.random() < 0.4 else 0.0
        self.share = rng.uniform(0.35, 1.0) if rng.random() > 0.12 else 0.0
        self.squeeze = rng.uniform(0.75, 1)
        self.rough = rng.uniform(0, 0.16) ** 1.5 * 4
        self.rough_scale = rng.uniform(1.5, 3.0)
        self.chromatin, self.grain = rng.uniform(0, 1.0), rng.uniform(0.5, 2.0)
        self.granules = rng.uniform(0.02, 0.75) ** 1.5 if rng.random() < 0.65 else 0.0
        self.granule_size = np.exp(rng.uniform(np.log(0.4), np.log(1.4)))
        self.over_nucleus = float(rng.random() < 0.4) * rng.uniform(0.3, 1)
        self.vacuoles = int(rng.integers(1, 8)) if rng.random() < 0.2 else 0
        self.halo, self.rim, self.patchy = rng.uniform(-0.4, 0.4), rng.uniform(0, 0.5), rng.uniform(0, 1.0)
        self.edge = rng.uniform(0.01, 0.05)

    def draw(
        self,
        image: Field,
        maps: Field,
        x: Field,
        y: Field,
        centre: Field,
        radius: float,
        stain: Stain,
        rng: np.random.Generator,
    ) -> tuple[Field, Numbers]:
        """Return the image with one more cell, and the cell's measurements; mark the cell in the maps."""
        size = len(x)
        warp = self.rough * radius * 2
        shift = [warp * (power_noise(size, rng, exponent=self.rough_scale) - 0.5) * 2 for _ in range(2)]
        shape = ellipse(x + shift[0], y + shift[1], centre, radius, self.squeeze, rng)
        outline = step(1 - shape, self.edge + 1.0 / (size * radius) * 0.5)
        distance, off = self._nucleus(x + 0.5 * shift[1], y + 0.5 * shift[0], centre, radius, rng)
        nucleus = step(distance / radius, 0.5 * self.edge + 0.5 / (size * radius)) * step(1.04 - shape, 0.05)
        body = np.full((size, size), 1.0) + self.patchy * (power_noise(size, rng, exponent=1.3) - 0.5) * 1.5
        body *= 1 + self.halo * (1 - np.clip(shape, 0, 1)) * 2 + self.rim * np.exp(-(((shape - 1) / 0.06) ** 2))
        density = np.clip(body, 0.1, 3)[..., None] * stain.body
        grains = np.zeros((size, size, 1))
        if self.granules:
            grains = blur(rng.normal(size=(size, size)), self.granule_size)
            threshold = np.quantile(grains, 1 - self.granules)
            grains = step((grains - threshold) / grains.std(), 0.25)[..., None]
            density = density * (1 - grains) + grains * np.maximum(stain.granule, 0.6 * density)
        chromatin = power_noise(size, rng, exponent=self.grain)
        chromatin = (chromatin - chromatin.mean()) / chromatin.std()
        dark = stain.nucleus * np.clip(1 + 0.5 * self.chromatin * chromatin, 0.25, 2)[..., None]
        dark *= (1 + self.rim * np.exp(-((distance / radius / 0.05) ** 2)))[..., None]
        if self.granules:
            dark = dark * (1 - self.over_nucleus * grains) + self.over_nucleus * grains * (0.4 * dark + stain.granule)
        density = density * (1 - nucleus[..., None]) + dark * nucleus[..., None]
        for _ in range(self.vacuoles):
            place = centre + rng.normal(0, 0.4, 2) * radius
            hole = step(1 - ellipse(x, y, place, radius * rng.uniform(0.04, 0.14), 0.9, rng), 0.3)[..., None]
            density = density * (1 - 0.8 * hole)
        drawn = np.exp(-density) * (0.5 + 0.5 * stain.ground)
        maps *= 1 - outline[..., None]
        maps[..., 0] += outline
        maps[..., 1] += outline * nucleus
        maps[..., 2] += outline * grains[..., 0]
        image = image * (1 - outline[..., None]) + drawn * outline[..., None]
        area = float(nucleus.sum())
        gradient = np.hypot(*np.gradient(nucleus)).sum()
        return image, {
            "nucleus share": area / (float(outline.sum()) + 1),
            "nucleus roundness": float(min(4 * np.pi * area / (gradient**2 + 1e-9), 1.2)) if self.share else 0.0,
            "lobes": float(self.lobes if self.share else 0),
            "bridge": self.bridge if self.lobes > 1 and self.share else 1 - self.indent,
            "off centre": off,
            "chromatin": self.chromatin if self.share else 0.0,
            "chromatin grain": self.grain,
            "granules": self.granules,
            "granule size": self.granule_size if self.granules else 1.0,
            "granules on nucleus": self.over_nucleus if self.granules else 0.0,
            "vacuoles": self.vacuoles**0.5,
            "rough outline": self.rough,
        }

    def _nucleus(
        self, x: Field, y: Field, centre: Field, radius: float, rng: np.random.Generator
    ) -> tuple[Field, float]:
        """Return the signed distance to the nucleus outline, positive inside, and the offset of the nucleus.

        The nucleus is an indented body or has bridged lobes. The offset is a share of the cell's radius.
        """
        reach = self.share * radius
        off = rng.uniform(0, 1) * max(1 - self.share, 0.05)
        turn = rng.uniform(0, 2 * np.pi)
        place = centre + off * radius * np.array([np.cos(turn), np.sin(turn)])
        if not self.share:
            return np.full_like(x, -radius), 0.0
        if self.lobes == 1:
            squeeze = rng.uniform(0.7, 1)
            inside = reach * (1 - ellipse(x, y, place, reach, squeeze, rng))
            if self.indent:
                turn = rng.uniform(0, 2 * np.pi)
                bite = place + 1.1 * reach * np.array([np.cos(turn), np.sin(turn)])
                inside = np.minimum(inside, np.hypot(x - bite[0], y - bite[1]) - reach * (0.2 + self.indent))
            return inside, off
        angles = turn + np.cumsum(rng.uniform(0.7, 1.3, self.lobes)) * rng.uniform(0.25, 0.5) * np.pi
        lobe = reach * rng.uniform(0.9, 1.3) * (0.62 - 0.06 * self.lobes)
        orbit = reach * rng.uniform(0.5, 0.85)
        points = place + orbit * np.stack([np.cos(angles), np.sin(angles)], axis=1) * rng.uniform(0.7, 1, (2,))
        inside = np.full_like(x, -np.inf)
        for point in points:
            ratio = rng.uniform(0.75, 1.2)
            inside = np.maximum(
                inside, lobe * ratio * (1 - ellipse(x, y, point, lobe * ratio, rng.uniform(0.7, 1), rng))
            )
        for (x1, y1), (x2, y2) in pairwise(points):
            along = ((x - x1) * (x2 - x1) + (y - y1) * (y2 - y1)) / ((x2 - x1) ** 2 + (y2 - y1) ** 2 + 1e-9)
            along = np.clip(along, 0, 1)
            gap = np.hypot(x - x1 - along * (x2 - x1), y - y1 - along * (y2 - y1))
            inside = np.maximum(inside, lobe * 0.95 * self.bridge - gap)
        return inside, off
