"""Procedural images of stained tissue and pigmented lesions, with the parameters and maps of each drawing."""

import numpy as np
from PIL import Image, ImageDraw

from simulations.pretraining.fields import (
    Field,
    Numbers,
    Stain,
    blur,
    ellipse,
    name_colours,
    place_grid,
    power_noise,
    step,
    unit,
)

__all__ = ["TISSUE_NUMBERS", "draw_lesion", "draw_tissue"]

TISSUE_NUMBERS = (
    *("nuclei", "nucleus size", "glands", "fibres"),
    *("lesion share", "lesion border", "lesion parts", "net", "hairs"),
)


def draw_tissue(size: int, rng: np.random.Generator) -> tuple[Field, Numbers, Field]:
    """Draw a stained section of fibres, nuclei and glands, which are rings of nuclei around a lumen.

    Returns:
        image, numbers and maps as from `draw_cells`; the numbers are from `TISSUE_NUMBERS` and `COLOURS`.
    """
    stain = Stain(rng)
    fibres, angle = rng.uniform(0, 1), rng.uniform(0, 180)
    grain = power_noise(2 * size, rng, exponent=rng.uniform(0.8, 1.6))
    sheet = Image.fromarray(np.asarray(255 * grain, dtype=np.uint8)).resize(
        (2 * size, max(8, int(2 * size / (1 + 5 * fibres))))
    )
    tile = sheet.resize((2 * size, 2 * size), Image.Resampling.BICUBIC).rotate(angle)
    corner = size // 2
    stroma = unit(np.asarray(tile.crop((corner, corner, corner + size, corner + size)), dtype=float))
    density = stroma[..., None] * stain.body * rng.uniform(0.6, 1.4) + 0.1
    mask = Image.new("L", (3 * size, 3 * size))
    lumen = Image.new("L", (3 * size, 3 * size))
    ink, hollow = ImageDraw.Draw(mask), ImageDraw.Draw(lumen)
    nucleus_size = np.exp(rng.uniform(np.log(0.012), np.log(0.05)))
    glands, nuclei = int(rng.integers(0, 5)), int(rng.integers(5, 140) * min(1, (0.025 / nucleus_size) ** 1.5)) + 1

    def place(cx: float, cy: float) -> None:
        a, b = nucleus_size * rng.uniform(0.7, 1.3), nucleus_size * rng.uniform(0.5, 1.0)
        turn, points = rng.uniform(0, np.pi), np.linspace(0, 2 * np.pi, 12, endpoint=False)
        px = cx + a * np.cos(points) * np.cos(turn) - b * np.sin(points) * np.sin(turn)
        py = cy + a * np.cos(points) * np.sin(turn) + b * np.sin(points) * np.cos(turn)
        ink.polygon(
            [(float(u), float(v)) for u, v in np.stack([px, py], axis=1) * 3 * size], fill=int(rng.integers(140, 256))
        )

    for _ in range(nuclei):
        place(*rng.uniform(0, 1, 2))
    for _ in range(glands):
        (cx, cy), outer = rng.uniform(0.1, 0.9, 2), rng.uniform(0.1, 0.3)
        inner = outer * rng.uniform(0.3, 0.85) * 3 * size
        hollow.ellipse(
            (cx * 3 * size - inner, cy * 3 * size - inner, cx * 3 * size + inner, cy * 3 * size + inner), fill=255
        )
        for turn in np.arange(0, 2 * np.pi, 1.8 * nucleus_size / outer):
            place(cx + outer * np.cos(turn), cy + outer * np.sin(turn))
    inked, holes = (
        np.asarray(part.resize((size, size), Image.Resampling.BOX), dtype=float) / 255 for part in (mask, lumen)
    )
    texture = 0.6 + 0.8 * power_noise(size, rng, exponent=1.0)
    density = density * (1 - 0.9 * holes[..., None])
    density = density * (1 - inked[..., None]) + (inked * texture)[..., None] * stain.nucleus
    image = np.exp(-density) * stain.ground
    numbers = {
        "nuclei": nuclei**0.5,
        "nucleus size": float(np.log(nucleus_size)),
        "glands": float(glands),
        "fibres": fibres,
    }
    numbers |= {name: value for name, value in stain.colours().items() if not name.startswith("granule")}
    maps = np.stack([np.zeros_like(inked), inked, np.zeros_like(inked), holes], axis=-1)
    return np.clip(image, 0, 1), numbers, maps


def draw_lesion(size: int, rng: np.random.Generator) -> tuple[Field, Numbers, Field]:
    """Draw a pigmented blob with an uneven border and several tints, sometimes under hairs.

    Returns:
        image, numbers and maps as from `draw_cells`; the numbers are from `TISSUE_NUMBERS` and `COLOURS`.
    """
    y, x = place_grid(size)
    stain = Stain(rng)
    ground = stain.ground * np.exp(-stain.red * rng.uniform(0.2, 1.2))
    image = (
        ground * (1 + rng.uniform(0, 0.35) * (power_noise(size, rng, exponent=rng.uniform(0.7, 2)) - 0.5))[..., None]
    )
    border, radius = rng.uniform(0, 0.5), np.exp(rng.uniform(np.log(0.1), np.log(0.5)))
    shift = [border * radius * (power_noise(size, rng, exponent=rng.uniform(1.6, 2.6)) - 0.5) * 3 for _ in range(2)]
    shape = ellipse(x + shift[0], y + shift[1], 0.5 + rng.normal(0, 0.08, 2), radius, rng.uniform(0.5, 1), rng)
    inside = step(1 - shape, rng.uniform(0.02, 0.3))
    parts = int(rng.integers(1, 5))
    density = np.ones((size, size, 3)) * stain.body
    for colour in (stain.nucleus, stain.granule, 0.2 * stain.body)[: parts - 1]:
        part = step(power_noise(size, rng, exponent=2.2) - rng.uniform(0.45, 0.65), 0.05)[..., None]
        density = density * (1 - part) + colour * part
    net = rng.uniform(0, 1) if rng.random() < 0.6 else 0.0
    ridges = np.zeros((size, size))
    if net:
        mesh = blur(rng.normal(size=(size, size)), rng.uniform(1, 3))
        ridges = np.exp(-((mesh / mesh.std() / 0.4) ** 2))
        density = density * (1 + 1.2 * net * ridges - 0.4 * net)[..., None]
    image = image * np.exp(-inside[..., None] * density)
    hairs = int(rng.integers(1, 12)) if rng.random() < 0.3 else 0
    if hairs:
        canvas = Image.new("L", (2 * size, 2 * size))
        for _ in range(hairs):
            start, bend = rng.uniform(0, 2 * size, 2), rng.uniform(-1, 1, (3, 2)) * size
            points = [start + bend[0] * t + bend[1] * t**2 + bend[2] * t**3 * 0.5 for t in np.linspace(0, 1, 12)]
            ImageDraw.Draw(canvas).line(
                [(float(u), float(v)) for u, v in points], fill=255, width=int(rng.integers(1, 5))
            )
        drawn = np.asarray(canvas.resize((size, size), Image.Resampling.BOX), dtype=float)[..., None] / 255
        image = image * (1 - drawn * rng.uniform(0.4, 0.9))
    numbers = {"lesion share": float(inside.mean()), "lesion border": border, "lesion parts": float(parts)}
    numbers |= {"net": net, "hairs": hairs**0.5}
    numbers |= name_colours(ground=ground, body=np.exp(-stain.body))
    maps = np.stack([inside, np.zeros_like(inside), inside * ridges, np.zeros_like(inside)], axis=-1)
    return np.clip(image, 0, 1), numbers, maps
