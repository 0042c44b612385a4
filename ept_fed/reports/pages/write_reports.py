"""Writing the reports of a run folder: pages for people, JSON and CSV for programs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ept_fed.errors import InputRefusedError, Problem
from ept_fed.reports.pages.federation_report import build_federation_report
from ept_fed.reports.pages.gallery import GalleryItem
from ept_fed.reports.pages.html import render_federation, render_site
from ept_fed.reports.pages.site_report import SiteReport, build_site_report
from ept_fed.reports.pages.wording import Headline
from ept_fed.reports.run.read_run import RunResult, read_run
from ept_fed.reports.run.run_folder import site_folder
from ept_fed.reports.statistics.pooled import describe_shared
from ept_fed.storage.files import dump_json, write_csv, write_json, write_text

__all__ = ["MAX_PAGES", "Kind", "WrittenReports", "build_reports", "make_reports", "write_reports"]

Kind = Literal["html", "json", "csv"]

MAX_PAGES = 100
"""Above this number of sites, only sites requested by name get a page; the others get report.json and a row."""

_CSV_COLUMNS = ("site", "class", "metric", "setting", "value", "low", "high", "verdict")


def build_reports(run: RunResult, site: str | None = None, *, sensitivity: float = 0.9) -> tuple[SiteReport, ...]:
    """Return the reports of all sites, or only of the given site.

    Raises:
        InputRefusedError: if the run does not have this site.
    """
    if site is not None and site not in run.sites:
        raise InputRefusedError([Problem("--site", site, f"is not in this run; it has {', '.join(run.sites)}")])
    names = run.sites if site is None else (site,)
    return tuple(build_site_report(run, name, sensitivity=sensitivity) for name in names)


@dataclass(frozen=True)
class WrittenReports:
    """The written files, with the federation's page last, and the verdict of each site."""

    files: tuple[Path, ...]
    headlines: Mapping[str, Headline]


def write_reports(run_folder: Path, **options: Any) -> list[Path]:
    """Write all reports of a run with the options of `make_reports`, and return the files."""
    return list(make_reports(run_folder, **options).files)


def make_reports(
    run_folder: Path,
    *,
    kind: Kind = "html",
    site: str | None = None,
    sensitivity: float = 0.9,
    gallery: Mapping[str, Sequence[GalleryItem]] | None = None,
) -> WrittenReports:
    """Write sites/<site>/{report.html,report.json,shared.json}, and the federation's report.html in the run folder.

    Args:
        run_folder: folder of a finished run.
        kind: html: pages, and report.json and shared.json per site; json: only these two; csv: report.csv per site.
        site: write only this site's reports, without the federation's page.
        sensitivity: target sensitivity of the operating points.
        gallery: pictures by site, for that site's own page; a page without pictures states the reason.

    Raises:
        InputRefusedError: with all problems of the folder.
    """
    run = read_run(run_folder)
    reports = build_reports(run, site, sensitivity=sensitivity)
    pages = site is not None or len(reports) <= MAX_PAGES
    written: list[Path] = []
    for report in reports:
        folder = run_folder / "sites" / site_folder(report.site)
        if kind == "csv":
            write_csv(folder / "report.csv", list_values(report), _CSV_COLUMNS)
            written.append(folder / "report.csv")
            continue
        write_json(folder / "report.json", report.to_json())
        shared = describe_shared(report.site, report.classes, report.shared)
        write_text(folder / "shared.json", dump_json(shared) + "\n")
        written += [folder / "report.json", folder / "shared.json"]
        if kind == "html" and pages:
            write_text(folder / "report.html", render_site(report, (gallery or {}).get(report.site)))
            written.append(folder / "report.html")
    if kind == "html" and site is None:
        page = render_federation(build_federation_report(run, reports), reports, pages)
        write_text(run_folder / "report.html", page)
        written.append(run_folder / "report.html")
    return WrittenReports(tuple(written), {report.site: report.headline for report in reports})


def list_values(report: SiteReport) -> list[dict[str, Any]]:
    """Return one row per class, metric and setting; the class of overall metrics and undefined numbers are empty."""
    rows = []
    for metric in report.statistics.metrics:
        for setting, interval in metric.values.items():
            rows.append(_csv_row(report.site, "", metric.metric, setting, interval))
        for setting, difference in metric.differences.items():
            row = _csv_row(report.site, "", metric.metric, f"{setting} - local", difference)
            rows.append(row | {"verdict": difference.verdict})
    for part in report.statistics.classes:
        for setting, values in part.values.items():
            rows += [_csv_row(report.site, part.name, name, setting, interval) for name, interval in values.items()]
    return rows


def _csv_row(site: str, part: str, metric: str, setting: str, interval: Any) -> dict[str, Any]:
    numbers = {name: getattr(interval, name) for name in ("value", "low", "high")}
    shown = {name: "" if math.isnan(number) else number for name, number in numbers.items()}
    return {"site": site, "class": part, "metric": metric, "setting": setting, **shown, "verdict": ""}
