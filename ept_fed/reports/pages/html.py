"""HTML pages from reports: each page is one file that loads nothing, and all names are escaped."""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ept_fed.evaluation.bootstrap import MIN_GROUPS, Interval
from ept_fed.evaluation.histograms import LEAST_COUNT
from ept_fed.evaluation.metrics import Array
from ept_fed.evaluation.subgroups import MIN_CASES
from ept_fed.reports.charts.svg import draw_confusion, draw_learning, draw_reliability, draw_roc, setting_style
from ept_fed.reports.pages.federation_report import FederationReport
from ept_fed.reports.pages.gallery import GalleryItem
from ept_fed.reports.pages.site_report import SiteReport
from ept_fed.reports.pages.wording import KEPT, signed, span
from ept_fed.reports.run.cross_site import CrossSite
from ept_fed.reports.run.settings import (
    CANDIDATES,
    CHOSEN,
    MIXED,
    PERSONALISED,
    compared_settings,
    main_settings,
    verdict_setting,
)

__all__ = ["page_environment", "render_federation", "render_site"]

METRIC_WORDS = {
    "auc": (
        "AUC, mean over classes",
        "how often an image with a class gets a higher score for it than one without it",
    ),
    "average_precision": ("Average precision", "precision of the ranking by score; mean over classes"),
    "accuracy": ("Accuracy", "share of correctly classified images"),
    "balanced_accuracy": ("Balanced accuracy", "accuracy with equal weight for every class"),
    "loss": ("Log loss (lower is better)", "penalises confident errors"),
    "brier": ("Brier score (lower is better)", "squared distance of the probabilities from the true labels"),
}
SETTING_WORDS = {
    "local": "local only",
    "federated": "federated",
    "centralised": "centralised",
    "fine-tuned": "federated, fine-tuned here",
    "interpolated": "federated and local prompts, interpolated",
    CHOSEN: "this site's choice",
    PERSONALISED: "federated, own head",
    MIXED: "sum of local and federated",
    "ditto": "Ditto: personal model near the federated one",
}
VERDICT_WORDS = {
    "helped": ("▲", "helped"),
    "no clear difference": ("●", "no clear difference"),
    "harmed": ("▼", "harmed"),
    KEPT: ("■", "local model kept"),
    "none": ("○", "no verdict"),
}

_MAX_COLUMNS = 16
_NO_BREAK = "\N{NO-BREAK SPACE}"


def render_site(report: SiteReport, gallery: Sequence[GalleryItem] | None = None) -> str:
    """Return the page of one site.

    Args:
        report: the site's report.
        gallery: pictures of the most confident errors; None if they were not collected. They are embedded in the page,
            so the page must stay where the images are.
    """
    statistics = report.statistics
    shown = [s for s in main_settings(report.settings) if statistics.images]
    losses = np.array([[row.train_loss] for row in report.learning]).reshape(-1, 1)
    aucs = np.array([[row.validation_auc] for row in report.learning]).reshape(-1, 1)
    rounds = [row.round for row in report.learning]
    charts = {
        "roc": draw_roc({s: statistics.roc[s] for s in shown}, report.classes, "roc"),
        "reliability": draw_reliability(
            {s: statistics.reliability[s] for s in shown}, "reliability", multi_label=report.task == "multi_label"
        )
        if shown
        else "",
        "learning": _draw_curves(rounds, losses, aucs),
    }
    confusion = {
        setting: Markup(draw_confusion(counts, report.classes, f"confusion-{place}"))
        for place, (setting, counts) in enumerate(statistics.confusion.items())
        if setting in shown
    }
    low, high = _range([interval for s in shown if (interval := statistics.metrics[0].values.get(s))])
    return (
        page_environment()
        .get_template("site.html.j2")
        .render(
            report=report,
            statistics=statistics,
            settings=shown,
            pair=[s for s in compared_settings(shown) if s in shown],
            used=verdict_setting(shown),
            candidates=_list_candidates(report) if shown else {},
            by_metric={row.metric: row for row in statistics.metrics},
            charts={name: Markup(svg) for name, svg in charts.items()},
            confusion=confusion,
            gallery=gallery,
            auc_range=(low, high),
            data_table=_tabulate(report),
            traffic_rows=_merge_rounds(report),
            absences=_list_absences(report),
        )
    )


def _list_candidates(report: SiteReport) -> dict[str, Any]:
    """Return, by setting, the models among which the site chose, with their losses; None without validation images."""
    losses = {} if report.choice is None else {row["name"]: row for row in report.choice["rows"]}
    return {setting: losses.get(setting) for setting in CANDIDATES if setting in report.settings}


def render_federation(report: FederationReport, learning: Sequence[SiteReport], pages: bool) -> str:
    """Return the page of the consortium.

    Args:
        report: the consortium's report.
        learning: the sites' reports, for the training curves.
        pages: whether each site has its own page.
    """
    losses = np.array([[row.train_loss for row in site.learning] for site in learning], dtype=float).T
    aucs = np.array([[row.validation_auc for row in site.learning] for site in learning], dtype=float).T
    rounds = [row.round for row in learning[0].learning] if learning else []
    chart = _draw_curves(rounds, losses, aucs)
    matrix = _shade(report.cross_site) if report.cross_site and len(report.cross_site.sites) <= _MAX_COLUMNS else None
    template = page_environment().get_template("federation.html.j2")
    return template.render(
        report=report,
        main=main_settings(report.settings),
        compared=compared_settings(report.settings),
        learning=Markup(chart),
        rounds=rounds,
        pages=pages,
        matrix=matrix,
    )


@functools.cache
def page_environment() -> Environment:
    """Return the Jinja environment of the pages; it escapes all names and refuses undefined variables."""
    environment = Environment(
        loader=PackageLoader("ept_fed.reports.pages", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": _number,
        "interval": _interval,
        "signed": signed,
        "span": span,
        "size": _size,
        "percent": lambda value: "–" if math.isnan(value) else f"{100 * value:.0f} %",
        "setting": lambda name: SETTING_WORDS.get(name, name),
    }
    environment.tests["defined_number"] = lambda value: not math.isnan(value)
    environment.globals |= {
        "metric_words": METRIC_WORDS,
        "verdict_words": VERDICT_WORDS,
        "min_groups": MIN_GROUPS,
        "min_cases": MIN_CASES,
        "least_count": LEAST_COUNT,
        "color": lambda setting: setting_style(setting)[0],
        "dashes": lambda setting: " ".join(f"{2 * part:g}" for part in setting_style(setting)[1] or ()),
    }
    return environment


def _draw_curves(rounds: Sequence[int], losses: Array, aucs: Array) -> str:
    """Return the training curves, or "" if no round has a number, because in some runs no metrics leave the site."""
    if not (np.isfinite(losses).any() or np.isfinite(aucs).any()):
        return ""
    return draw_learning(rounds, losses, aucs, "learning")


def _shade(matrix: CrossSite) -> dict[str, Any]:
    """Return headings and rows of the cross-site table, with shades from 0 (worst) to 5 (best); "none" for NaN."""
    known = matrix.auc[~np.isnan(matrix.auc)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    rows = []
    for i, site in enumerate(matrix.sites):
        cells = []
        for j, value in enumerate(matrix.auc[i].tolist()):
            shade = "none" if math.isnan(value) else str(round(5 * (value - low) / max(high - low, 1e-9)))
            cells.append({"value": value, "shade": shade, "own": i == j})
        rows.append((site, cells))
    heads = list(zip(matrix.sites, matrix.classes, strict=True))
    return {"heads": heads, "rows": rows, "all_classes": matrix.all_classes}


def _tabulate(report: SiteReport) -> list[tuple[str, list[str]]]:
    """Return pairs of a class and its cells "images (groups)" for the training, validation and test split."""
    cells = {(row["class"], row["split"]): f"{row['images']} ({row['groups']})" for row in report.data}
    splits = ("train", "validation", "test")
    return [(name, [cells.get((name, split), "–") for split in splits]) for name in report.classes]


def _merge_rounds(report: SiteReport) -> list[tuple[str, str, str]]:
    """Return rows of rounds, bytes sent by the site and bytes sent to it; equal consecutive rounds share a row."""
    keyed = [(_size(row.bytes_from_site), _size(row.bytes_to_site), row.round) for row in report.learning]
    rows = []
    for sizes, part in itertools.groupby(keyed, key=lambda row: row[:2]):
        numbers = [row[2] for row in part]
        rounds = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}–{numbers[-1]}"
        rows.append((rounds, *sizes))
    return rows


def _list_absences(report: SiteReport) -> list[tuple[str, list[int]]]:
    """Return the reasons why the selected site was excluded, with the rounds."""
    found: dict[str, list[int]] = {}
    for row in report.learning:
        if row.refused or (row.asked and not row.averaged):
            found.setdefault(row.refused or "no update of this site was averaged", []).append(row.round)
    return list(found.items())


def _range(intervals: Sequence[Interval]) -> tuple[float, float]:
    edges = [x for i in intervals for x in (i.low, i.value, i.high) if not math.isnan(x)]
    if not edges:
        return 0.0, 1.0
    return max(0.0, math.floor(min(edges) * 10 - 0.2) / 10), min(1.0, math.ceil(max(edges) * 10 + 0.2) / 10)


def _number(value: float, digits: int = 3) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def _interval(interval: Interval, digits: int = 3) -> str:
    if math.isnan(interval.value):
        return "–"
    bounds = "" if math.isnan(interval.low) else f" ({interval.low:.{digits}f}–{interval.high:.{digits}f})"
    return f"{interval.value:.{digits}f}{bounds}"


def _size(count: int) -> str:
    if count < 1000:
        return f"{count}{_NO_BREAK}bytes"
    small = count < 1_000_000
    return f"{count / 1000:,.1f}{_NO_BREAK}kB" if small else f"{count / 1_000_000:,.1f}{_NO_BREAK}MB"
