"""Example images of each class with the effect of the prompts on their patches, before and after tuning."""

import io

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from ept_fed.reports.charts.svg import shorten, styled
from simulations.benchmark.analysis.feature_record import MOMENTS, ScalingExamples

__all__ = ["draw_scaling"]


@styled
def draw_scaling(examples: ScalingExamples, classes: tuple[str, ...]) -> bytes:
    """Draw a column per class and three rows per image (image, factors before, factors after), as PNG.

    All maps share one cividis scale, which is readable with and without colour vision. Dark patches keep little of
    their attention's output, bright patches keep more.
    """
    present = [int(c) for c in np.unique(examples.labels)]
    each = max(int((examples.labels == c).sum()) for c in present)
    every = np.stack([examples.factors[moment] for moment in MOMENTS])
    scale = Normalize(float(every.min()), float(every.max()))
    figure = Figure(figsize=(0.9 + 1.15 * len(present), 0.3 + 3.45 * each), layout="constrained")
    panels = figure.subplots(3 * each, len(present), squeeze=False)
    shown = None
    for panel in panels.ravel():
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(False)
    for column, c in enumerate(present):
        panels[0, column].set_title(shorten(classes[c], 12), fontsize=9)
        for place, index in enumerate(np.flatnonzero(examples.labels == c)):
            panels[3 * place, column].imshow(examples.images[index])
            for row, moment in enumerate(MOMENTS, start=3 * place + 1):
                factors = examples.factors[moment][index]
                shown = panels[row, column].imshow(factors, cmap="cividis", norm=scale)
    for row in range(3 * each):
        panels[row, 0].set_ylabel(("image", *MOMENTS)[row % 3], fontsize=9)
    if shown is not None:
        figure.colorbar(shown, ax=panels, label="share of the attention's output that is kept", shrink=0.5, aspect=30)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()
