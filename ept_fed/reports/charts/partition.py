"""The chart of a partition: images per site and class as a heat map, and the total of each site."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ept_fed.data.records.counts import CountRow
from ept_fed.reports.charts.svg import shorten, styled

__all__ = ["draw_partition", "tabulate"]

_MAX_NAMED = 60
_MAX_COUNTED = 400
_LARGE = "#08519c"


@styled
def draw_partition(rows: Sequence[CountRow]) -> bytes:
    """Draw the images per site and class over all splits, as PNG; the shade is the site's share of the class.

    Args:
        rows: the rows from `ept_fed.data.records.counts.count_images`.
    """
    sites, classes, counts = tabulate(rows)
    height = float(np.clip(0.28 * len(sites) + 1.4, 2.2, 14.0))
    figure = Figure(figsize=(min(0.6 * len(classes), 10.0) + 4.0, height), layout="constrained")
    chart, totals = figure.subplots(1, 2, sharey=True, width_ratios=(max(len(classes), 3), 3))
    shares = counts / np.maximum(counts.sum(axis=0), 1)
    chart.pcolormesh(shares, cmap="Blues", vmin=0.0, vmax=max(float(shares.max(initial=0.0)), 1e-9))
    chart.set(ylim=(len(sites), 0), title="images per site and class")
    chart.set_xticks(np.arange(len(classes)) + 0.5, [shorten(name) for name in classes], rotation=45, ha="right")
    if counts.size <= _MAX_COUNTED:
        _write_counts(chart, counts, shares)
    totals.barh(np.arange(len(sites)) + 0.5, counts.sum(axis=1), height=0.8, color=_LARGE)
    totals.set(title="total labels")
    if len(sites) <= _MAX_NAMED:
        chart.set_yticks(np.arange(len(sites)) + 0.5, [shorten(site, 24) for site in sites])
    else:
        chart.set_ylabel(f"{len(sites)} sites")
    for axis in (chart, totals):
        axis.tick_params(length=0, labelsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


def tabulate(rows: Sequence[CountRow]) -> tuple[list[str], list[str], np.ndarray]:
    """Return sites, classes and numbers of images (S, C), summed over splits."""
    sites = list(dict.fromkeys(str(row["site"]) for row in rows))
    classes = list(dict.fromkeys(str(row["class"]) for row in rows))
    site_at, class_at = ({name: place for place, name in enumerate(names)} for names in (sites, classes))
    counts = np.zeros((len(sites), len(classes)), dtype=np.int64)
    for row in rows:
        counts[site_at[str(row["site"])], class_at[str(row["class"])]] += int(row["images"])
    return sites, classes, counts


def _write_counts(chart: Axes, counts: np.ndarray, shares: np.ndarray) -> None:
    dark = 0.6 * float(shares.max(initial=0.0))
    for (site, label), count in np.ndenumerate(counts):
        color = "white" if shares[site, label] > dark else "#1f2933"
        chart.text(label + 0.5, site + 0.5, str(count), ha="center", va="center", fontsize=7, color=color)
