"""`ept-fed report`: write the pages of a finished run for every site and for the consortium."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from ept_fed.cli.refusals import DONE, FAILED, exit_on_refusal

if TYPE_CHECKING:
    from ept_fed.reports.pages.gallery import GalleryItem

__all__ = ["EXAMPLES", "report"]

EXAMPLES = (
    "Examples:\n\n  ept-fed report runs/demo-20260101-120000\n\n"
    "  ept-fed report runs/demo-20260101-120000 --site site-1 --gallery --format pdf"
)


class _Format(StrEnum):
    html = "html"
    json = "json"
    csv = "csv"
    pdf = "pdf"
    tensorboard = "tensorboard"
    mlflow = "mlflow"


_TRACKERS = (_Format.tensorboard, _Format.mlflow)
_PAGES = (_Format.html, _Format.pdf)


def report(
    run: Annotated[Path, typer.Argument(help="Run folder, as written by `ept-fed simulate`.", metavar="RUN")],
    kind: Annotated[
        _Format,
        typer.Option("--format", help="html, pdf: pages; json, csv: each site's numbers; a tracker: the rounds."),
    ] = _Format.html,
    site: Annotated[str | None, typer.Option(help="Only this site. Default: all, and the federation's page.")] = None,
    sensitivity: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Target sensitivity of the operating points, on validation images.")
    ] = 0.9,
    gallery: Annotated[
        bool, typer.Option("--gallery", help="Read images and weights again, to show the most confident errors.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print files and verdicts as one JSON document and nothing else.")
    ] = False,
) -> None:
    """Report for each site whether joining helped: federated against local only, on its own test patients.

    Writes sites/<site>/{report.html,report.json,shared.json}, and report.html for the consortium, into the run folder.
    With --gallery, sites' pages get the pictures that `ept-fed simulate` put there; images and weights are read from
    the paths in config.yaml. --format tensorboard or mlflow writes the same as `ept-fed simulate --track`. Exit code 0:
    done; 1: no browser to print a PDF; 2: the run folder is damaged, and every problem is listed.
    """
    with exit_on_refusal(as_json=as_json):
        _check_options(kind, site=site, gallery=gallery)
        if kind in _TRACKERS:
            _track(run, kind, as_json=as_json)
        from ept_fed.reports.pages.pdf import NoBrowserError, find_browser, print_pages
        from ept_fed.reports.pages.write_reports import Kind, make_reports

        try:
            if kind is _Format.pdf:
                find_browser()
            wanted: Kind = "json" if kind is _Format.json else "csv" if kind is _Format.csv else "html"
            pictures = _load_gallery(run) if gallery else None
            result = make_reports(run, kind=wanted, site=site, sensitivity=sensitivity, gallery=pictures)
            files = result.files
            if kind is _Format.pdf:
                files = (*files, *print_pages([path for path in files if path.suffix == ".html"]))
        except NoBrowserError as error:
            if as_json:
                typer.echo(json.dumps({"status": "failed", "reason": str(error)}))
            else:
                typer.echo(str(error), err=True)
            raise typer.Exit(FAILED) from None
    verdicts = {name: headline.verdict for name, headline in result.headlines.items()}
    if as_json:
        typer.echo(json.dumps({"status": "done", "verdicts": verdicts, "files": [str(path) for path in files]}))
    else:
        for name, headline in result.headlines.items():
            typer.echo(f"{name}: {headline.sentence}")
        typer.echo(f"{len(files)} files; open {files[-1]}")
    raise typer.Exit(DONE)


def _check_options(kind: _Format, *, site: str | None, gallery: bool) -> None:
    from ept_fed.errors import InputRefusedError, Problem

    found = []
    if gallery and kind not in _PAGES:
        found.append(Problem("--gallery", kind.value, "only pages contain pictures; use --format html or pdf"))
    if site is not None and kind in _TRACKERS:
        found.append(Problem("--site", site, f"{kind.value} receives whole runs; leave it out"))
    if found:
        raise InputRefusedError(found)


def _load_gallery(run: Path) -> "dict[str, list[GalleryItem]]":
    from simulations.engine.gallery import load_gallery  # imports torch: only for pictures

    return load_gallery(run)


def _track(run: Path, kind: _Format, *, as_json: bool) -> NoReturn:
    from ept_fed.tracking.track_run import track_run

    where = track_run(run, kind.value)
    typer.echo(json.dumps({"status": "done", "tracker": kind.value}) if as_json else where)
    raise typer.Exit(DONE)
