"""The picture of a benchmark: accuracy against what a site sends per round."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ept_fed.reports.charts import shorten, styled

__all__ = ["draw_benchmark"]

_MARKERS = {"federated": "o", "federated+head": "^"}


@styled
def draw_benchmark(summary: Sequence[Mapping[str, Any]], metric: str = "accuracy") -> bytes:
    """Draw one point per federated method and shots, bytes on a logarithmic axis, as PNG.

    Bars are one standard deviation over seeds. Settings that send nothing are the dashed lines.

    Args:
        summary: as `ept_fed.evaluation.benchmark.summarise` returns it.
        metric: one of its metrics.
    """
    rows = [row for row in summary if row["metric"] == metric and not np.isnan(row["mean"])]
    shots = list(dict.fromkeys(row["shots"] for row in rows)) or [None]
    figure = Figure(figsize=(4.4 * len(shots) + 1.6, 4.2), layout="constrained")
    axes = figure.subplots(1, len(shots), sharey=True, squeeze=False)[0]
    colours = {method: f"C{place % 10}" for place, method in enumerate(dict.fromkeys(r["method"] for r in rows))}
    for axis, count in zip(axes, shots, strict=True):
        for row in (row for row in rows if row["shots"] == count):
            colour, sd = colours[row["method"]], 0.0 if np.isnan(row["sd"]) else row["sd"]
            if row["setting"] not in _MARKERS:
                axis.axhline(row["mean"], color=colour, alpha=0.35, linewidth=0.8, dashes=(4, 3))
                continue
            marker = _MARKERS[row["setting"]]
            axis.errorbar(row["bytes_per_round"], row["mean"], sd, color=colour, marker=marker, capsize=2)
            label = shorten(row["method"], 16)
            axis.annotate(label, (row["bytes_per_round"], row["mean"]), xytext=(4, 4), textcoords="offset points")
        axis.set_xscale("log")
        axis.set(xlabel="bytes a site sends per round", title="all images" if count is None else f"{count} shots")
    axes[0].set_ylabel(f"{metric.replace('_', ' ')}, mean over sites")
    figure.supxlabel("circle: head at home; triangle: head shared; dashed: nothing is sent", fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()
