"""The page of `ept-fed benchmark --analyse`: the effect of tuning on the features, in one self-contained file."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ept_fed.config.benchmark_cell import Cell
from ept_fed.evaluation.feature_table import ALL_CLASSES, ALL_SITES
from ept_fed.reports.pages.html import page_environment
from simulations.benchmark.analysis.feature_record import FeatureRecord, Moment

__all__ = ["AnalysedMethod", "render_analysis"]

# Measure and heading: the measures of `PANEL_MEASURES`, and the one that has units.
COLUMNS = (
    ("intra_class_distance", "intra-class distance"),
    ("relative_intra_class_distance", "… as share of all"),
    ("fisher_ratio", "Fisher ratio"),
    ("nearest_centres", "nearest centres"),
    ("silhouette", "silhouette"),
)


@dataclass(frozen=True)
class AnalysedMethod:
    """A row of the comparison.

    Attributes:
        method: its name.
        rows: its rows of analysis.csv.
        figure: PNG.
        scaling: PNG, None for methods that scale nothing.
    """

    method: str
    rows: Sequence[Mapping[str, Any]]
    figure: bytes
    scaling: bytes | None

    def values(self, moment: Moment, site: str, label: str) -> dict[str, float]:
        """Return the method's measures by name."""
        wanted = (moment, site, label)
        return {r["measure"]: r["value"] for r in self.rows if (r["when"], r["site"], r["class"]) == wanted}

    def pair(self, site: str, label: str, measure: str) -> tuple[float, float]:
        """Return one measure before and after."""
        return self.values("before", site, label)[measure], self.values("after", site, label)[measure]


def render_analysis(
    name: str,
    cell: Cell,
    record: FeatureRecord,
    methods: Sequence[AnalysedMethod],
    overview: bytes,
    notes: Sequence[str],
) -> str:
    """Return the page as HTML.

    Args:
        name: of the experiment.
        cell: provides shots, seed, setting and fold, which are the same for all methods.
        record: provides classes, sites and numbers of images, which are also the same.
        methods: at least one.
        overview: PNG.
        notes: sentences.
    """
    tight = "relative_intra_class_distance"
    counts = [int((record.places == place).sum()) for place in range(len(record.sites))]
    of_class = [int((record.labels == c).sum()) for c in range(len(record.classes))]
    template = page_environment().get_template("analysis.html.j2")
    return template.render(
        name=name,
        cell=cell,
        images=len(record.labels),
        several=cell.setting == "local",
        headings=[heading for _, heading in COLUMNS],
        pooled=[(one.method, [one.pair(ALL_SITES, ALL_CLASSES, measure) for measure, _ in COLUMNS]) for one in methods],
        names=[one.method for one in methods],
        sites=[
            (site, count, [one.pair(site, ALL_CLASSES, tight) for one in methods])
            for site, count in zip(record.sites, counts, strict=True)
        ],
        classes=[
            (label, count, [one.pair(ALL_SITES, label, tight) for one in methods])
            for label, count in zip(record.classes, of_class, strict=True)
        ],
        overview=_embed(overview),
        overview_alt=_describe_overview(methods),
        figures=[
            (one.method, _embed(one.figure), _describe(one), _embed(one.scaling) if one.scaling else None)
            for one in methods
        ],
        notes=notes,
    )


def _embed(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _describe(one: AnalysedMethod) -> str:
    """Return the alternative text of a method's figure."""
    tight, clear = (one.pair(ALL_SITES, ALL_CLASSES, m) for m in ("relative_intra_class_distance", "silhouette"))
    return (
        f"{one.method}: densities of the classes along the first principal component, and t-SNE map of the images, "
        f"before and after tuning. Intra-class share of the variance {_tell(tight)}, silhouette {_tell(clear)}."
    )


def _describe_overview(methods: Sequence[AnalysedMethod]) -> str:
    told = [f"{one.method} {_tell(one.pair(ALL_SITES, ALL_CLASSES, 'silhouette'))}" for one in methods]
    return f"Four measures of each method before and after tuning, as in the tables. Silhouette: {'; '.join(told)}."


def _tell(pair: tuple[float, float]) -> str:
    before, after = ("undefined" if math.isnan(value) else f"{value:.3f}" for value in pair)
    return f"from {before} to {after}"
