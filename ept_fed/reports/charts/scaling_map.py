"""A picture of the gallery next to its scaling map; only for the page of the site itself."""

import io

import matplotlib as mpl
import numpy as np
from PIL import Image

from ept_fed.evaluation.metrics import Array

__all__ = ["draw_beside"]

_GAP = 6


def draw_beside(png: bytes, factors: Array) -> bytes:
    """Return the picture and, next to it, a heat map of the same size, as PNG bytes.

    Args:
        png: the picture as the model receives it.
        factors: (rows, columns), see `ept_fed.models.scaling_map`; drawn from dark (minimum of this map) to bright
            (maximum) in cividis, which is readable for people with colour blindness.
    """
    with Image.open(io.BytesIO(png)) as opened:
        picture = opened.convert("RGB")
    low, high = float(factors.min()), float(factors.max())
    shares = (factors - low) / max(high - low, 1e-9)
    colors = (mpl.colormaps["cividis"](shares)[..., :3] * 255).round().astype(np.uint8)
    heat = Image.fromarray(colors).resize(picture.size, Image.Resampling.NEAREST)
    both = Image.new("RGB", (2 * picture.width + _GAP, picture.height), "white")
    both.paste(picture, (0, 0))
    both.paste(heat, (picture.width + _GAP, 0))
    content = io.BytesIO()
    both.save(content, "PNG")
    return content.getvalue()
