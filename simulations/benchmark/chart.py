"""The chart of a benchmark: accuracy against the bytes that a site sends per round."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from ept_fed.reports.charts.svg import shorten, styled

__all__ = ["draw_benchmark", "pick_colours", "plot_benchmark"]

_MARKERS = {"federated": "o", "federated+head": "^", "chosen": "*"}
_DASHES = {"local": (4, 3), "centralised": (1, 1.5), "centralised-prompts": (4, 1.5, 1, 1.5)}


@styled
def draw_benchmark(summary: Sequence[Mapping[str, Any]], metric: str = "accuracy") -> bytes:
    """Return `plot_benchmark`'s figure as PNG."""
    buffer = io.BytesIO()
    plot_benchmark(summary, metric).savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


@styled
def plot_benchmark(summary: Sequence[Mapping[str, Any]], metric: str = "accuracy") -> Figure:
    """Draw one point per federated method, with bytes on a logarithmic axis and one panel per number of shots.

    Bars are one standard deviation over seeds. Settings that send nothing are horizontal broken lines.

    Args:
        summary: as `ept_fed.evaluation.benchmark_summary.summarise` returns it.
        metric: one of its metrics.
    """
    rows = [row for row in summary if row["metric"] == metric and not np.isnan(row["mean"])]
    shots = list(dict.fromkeys(row["shots"] for row in rows)) or [None]
    figure = Figure(figsize=(4.4 * len(shots) + 1.6, 4.2), layout="constrained")
    axes = figure.subplots(1, len(shots), sharey=True, squeeze=False)[0]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    colours = dict(zip(methods, pick_colours(len(methods)), strict=True))
    for axis, count in zip(axes, shots, strict=True):
        for row in (row for row in rows if row["shots"] == count):
            colour, sd = colours[row["method"]], 0.0 if np.isnan(row["sd"]) else row["sd"]
            if row["setting"] in _DASHES:
                axis.axhline(row["mean"], color=colour, alpha=0.5, linewidth=0.8, dashes=_DASHES[row["setting"]])
                continue
            marker = _MARKERS[row["setting"]]
            axis.errorbar(row["bytes_per_round"], row["mean"], sd, color=colour, marker=marker, capsize=2)
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(FuncFormatter(_tell_bytes))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set(xlabel="sent per site and round", title="all images" if count is None else f"{count} shots")
    axes[0].set_ylabel(f"{metric.replace('_', ' ')}, mean over sites")
    entries = [Line2D([], [], color=colour, marker="s", linestyle="") for colour in colours.values()]
    figure.legend(entries, [shorten(method, 48) for method in colours], loc="outside right upper", frameon=False)
    key = "circle: personalised head; triangle: shared head; star: each site's choice; "
    key += "dashes: local only; dots: centralised"
    if any(row["setting"] == "centralised-prompts" for row in rows):
        key += "; dash-dot: centralised prompts"
    figure.supxlabel(key, fontsize=8)
    return figure


def pick_colours(count: int) -> list[tuple[float, float, float, float]]:
    """Return `count` different colours, from a palette of clearly distinct colours if it has enough."""
    for name in ("tab10", "tab20"):
        if count <= mpl.colormaps[name].N:
            return [mpl.colormaps[name](place) for place in range(count)]
    return list(map(tuple, mpl.colormaps["turbo"](np.linspace(0, 1, count)).tolist()))


def _tell_bytes(value: float, _position: int | None) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g} B"
