"""Figures of the features before and after tuning, like Fig. 2 of Zu et al. 2024."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ept_fed.evaluation.features import find_axis
from ept_fed.evaluation.metrics import Array
from ept_fed.reports.charts.svg import class_style, shorten, styled
from simulations.benchmark.analysis.feature_record import MOMENTS, FeatureRecord, Moment

__all__ = ["PANEL_MEASURES", "draw_features", "draw_overview"]

# Measure, title with the better direction, and the minimum width of its axis, so that a tiny change also looks tiny.
# No measure depends on the scale of the features, so that methods can be compared.
PANEL_MEASURES = (
    ("relative_intra_class_distance", "Intra-class distance,\nshare of all (lower: tighter)", 0.1),
    ("fisher_ratio", "Fisher ratio\n(higher: further apart)", 0.1),
    ("nearest_centres", "Nearest two centres,\nin spreads (higher: apart)", 0.1),
    ("silhouette", "Silhouette\n(higher: clearer classes)", 0.1),
)
_TITLES = {"before": "before tuning", "after": "after tuning"}
_MIN_FOR_DENSITY = 5
_BLUE, _GREY, _FAINT = "#0072B2", "#52606d", "#d9dee4"


@styled
def draw_features(record: FeatureRecord) -> bytes:
    """Draw a method's features before (left) and after (right), as PNG.

    From top to bottom: density of each class on the first principal component of all images; density of each class
    around its centre on its own first component; t-SNE map. Both densities are in units of the root of the trace of
    the covariance of all images, so that before and after, and all methods, have comparable axes.
    """
    figure = Figure(figsize=(9.0, 9.4), layout="constrained")
    panels = figure.subplots(3, 2, height_ratios=(1, 1, 1.9))
    present = [int(c) for c in np.unique(record.labels)]
    for column, moment in enumerate(MOMENTS):
        _draw_pooled_axis(panels[0, column], record, moment, present)
        _draw_own_axes(panels[1, column], record, moment, present)
        _draw_map(panels[2, column], record, moment, present)
        panels[0, column].set_title(f"{_TITLES[moment]}\n{panels[0, column].get_title()}", fontsize=10)
    for row in panels[:2]:
        _share_limits(row)
        row[0].set_ylabel("density")
    counts = np.bincount(record.labels, minlength=len(record.classes))
    figure.legend(
        [_entry(c) for c in present],
        [f"{shorten(record.classes[c])} ({counts[c]})" for c in present],
        loc="outside lower center",
        ncols=max(1, min(len(present), 7)),
        handlelength=3.4,
        columnspacing=1.4,
        frameon=False,
    )
    return _to_png(figure)


@styled
def draw_overview(measures: Mapping[str, Mapping[Moment, Mapping[str, float]]]) -> bytes:
    """Draw each method's measures over all sites' images, a ring before and a dot after tuning, as PNG.

    Args:
        measures: value of each of `PANEL_MEASURES` by method and moment.
    """
    figure = Figure(figsize=(9.6, 1.5 + 0.36 * len(measures)), layout="constrained")
    panels = figure.subplots(1, len(PANEL_MEASURES), sharey=True)
    for panel, (name, title, width) in zip(panels, PANEL_MEASURES, strict=True):
        panel.set_title(title, fontsize=9, loc="left")
        panel.grid(axis="x", color=_FAINT, linewidth=0.6)
        panel.set_axisbelow(True)
        for place, moments in enumerate(measures.values()):
            before, after = moments["before"][name], moments["after"][name]
            panel.plot([before, after], [place, place], color=_GREY, linewidth=1.4)
            panel.plot([before], [place], "o", ms=9, markerfacecolor="white", markeredgecolor=_GREY, linewidth=0)
            panel.plot([after], [place], "o", ms=5.5, color=_BLUE, linewidth=0)
        panel.margins(x=0.12)
        low, high = panel.get_xlim()
        margin = max(0.0, width - (high - low)) / 2
        panel.set_xlim(low - margin, high + margin)
        panel.locator_params(axis="x", nbins=4)
    panels[0].set_yticks(range(len(measures)), [shorten(method, 20) for method in measures])
    panels[0].set_ylim(len(measures) - 0.5, -0.5)
    ring = Line2D([], [], marker="o", linewidth=0, markerfacecolor="white", markeredgecolor=_GREY)
    dot = Line2D([], [], marker="o", linewidth=0, color=_BLUE)
    labels = ["before tuning", "after tuning"]
    figure.legend([ring, dot], labels, loc="outside lower center", ncols=2, frameon=False)
    return _to_png(figure)


def _draw_pooled_axis(axis: Axes, record: FeatureRecord, moment: Moment, present: Sequence[int]) -> None:
    X, unit = _standardise(record.features[moment])
    if unit == 0:
        _say(axis, "nothing to draw: no features, not finite, or all the same")
        return
    direction, share = find_axis(X)
    projected = X @ direction
    # The sign of a component is arbitrary; the most common class is placed left in both columns.
    common = np.bincount(record.labels).argmax()
    projected *= -1 if projected[record.labels == common].mean() > 0 else 1
    for c in present:
        _draw_density(axis, projected[record.labels == c], c)
    axis.set_title(f"first component of all images ({share:.0%} of variance)", fontsize=9)


def _draw_own_axes(axis: Axes, record: FeatureRecord, moment: Moment, present: Sequence[int]) -> None:
    X, unit = _standardise(record.features[moment])
    if unit == 0:
        _say(axis, "nothing to draw")
        return
    for c in present:
        own = X[record.labels == c]
        projected = (own - own.mean(axis=0)) @ find_axis(own)[0]
        # The sign is arbitrary here too; the longer tail is placed right.
        _draw_density(axis, projected if (projected**3).sum() >= 0 else -projected, c)
    axis.set_title("each class around its centre, on its own first component", fontsize=9)


def _draw_map(axis: Axes, record: FeatureRecord, moment: Moment, present: Sequence[int]) -> None:
    placed = record.maps[moment]
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(True)
    axis.spines[:].set_color(_FAINT)
    if placed is None:
        _say(axis, "no t-SNE map: features are too few, not finite, or all the same")
        return
    labels = record.labels[record.drawn]
    # Rare classes are drawn on top of common ones, larger and more opaque, so that they are visible.
    for c in sorted(present, key=lambda c: -int((labels == c).sum())):
        colour, _, marker = class_style(c)
        own = placed[labels == c]
        common = len(own) > 1.5 * len(labels) / len(present)
        size, alpha = (6, 0.35) if common else (17, 0.85)
        axis.scatter(own[:, 0], own[:, 1], s=size, color=colour, marker=marker, alpha=alpha, linewidths=0)
    of = "" if len(labels) == len(record.labels) else f", {len(labels)} of {len(record.labels)} images"
    axis.set_title(f"t-SNE{of}", fontsize=9)


def _standardise(features: Array) -> tuple[Array, float]:
    """Return centred features divided by the root of the trace of their covariance, and that root; 0 if undefined."""
    X = np.asarray(features, dtype=np.float64)
    if len(X) == 0 or not np.isfinite(X).all() or not np.ptp(X, axis=0).any():
        return X, 0.0
    centred = X - X.mean(axis=0)
    unit = float(np.sqrt((centred**2).sum(axis=1).mean()))
    return centred / unit, unit


def _draw_density(axis: Axes, values: Array, c: int) -> None:
    """Draw a Gaussian kernel density (Scott's bandwidth), or ticks if there are too few images."""
    from scipy.stats import gaussian_kde

    colour, dashes, _ = class_style(c)
    if len(values) < _MIN_FOR_DENSITY or np.ptp(values) == 0:
        axis.plot(values, np.zeros_like(values), "|", color=colour, ms=9, mew=1.5, clip_on=False)
        return
    density = gaussian_kde(values)
    margin = 3 * float(np.sqrt(density.covariance[0, 0]))
    grid = np.linspace(values.min() - margin, values.max() + margin, 200)
    (line,) = axis.plot(grid, density(grid), color=colour, linewidth=1.6)
    if dashes is not None:
        line.set_dashes(dashes)


def _share_limits(row: Sequence[Axes]) -> None:
    limits = np.array([[*axis.get_xlim(), axis.get_ylim()[1]] for axis in row])
    for axis in row:
        axis.set(xlim=(limits[:, 0].min(), limits[:, 1].max()), ylim=(0, limits[:, 2].max()))


def _entry(c: int) -> Line2D:
    colour, dashes, marker = class_style(c)
    line = Line2D([], [], color=colour, marker=marker, ms=5, linewidth=1.6)
    if dashes is not None:
        line.set_dashes(dashes)
    return line


def _say(axis: Axes, sentence: str) -> None:
    axis.text(0.5, 0.5, sentence, ha="center", va="center", transform=axis.transAxes, color=_GREY, wrap=True)


def _to_png(figure: Figure) -> bytes:
    for axis in figure.axes:
        axis.tick_params(labelsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()
