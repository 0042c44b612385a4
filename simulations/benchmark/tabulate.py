"""Write a benchmark's results into the README and the docs, as Markdown between two marks.

    python -m simulations.benchmark.tabulate results/worth_ham10000.csv

Every number in those tables comes from this module. A page gets a table at a line such as
`<!-- worth_ham10000:worth -->`; the other tables are in `TABLES`. The following line selects some methods, in this
order; a name with a comma must be in quotation marks:

    <!-- worth_ham10000:sites of prompts only, "prompts only, 30 images" -->

The text between such a line and the next `<!-- end -->` is replaced. `--check` writes nothing, and fails if a page
would change.
"""

import csv
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ept_fed.config.benchmark import SETTINGS
from ept_fed.evaluation.benchmark_summary import (
    POOLED_METRICS,
    SUMMARY_METRICS,
    choose_home,
    compare_means_with_local,
    compare_with_local,
    summarise,
)
from ept_fed.reports.pages.wording import signed
from ept_fed.storage.files import write_bytes, write_text
from simulations.benchmark.chart import draw_benchmark

__all__ = [
    "PAGES",
    "TABLES",
    "fill_page",
    "read_results",
    "tabulate_gains",
    "tabulate_methods",
    "tabulate_paired",
    "tabulate_pooled",
    "tabulate_sites",
    "tabulate_worth",
]

PAGES = (
    Path("README.md"),
    *(Path("docs") / f"{page}.md" for page in ("benchmark", "differential-privacy")),
)


def read_results(path: Path) -> list[dict[str, Any]]:
    """Read results.csv as the benchmark writes it."""
    with path.open(newline="", encoding="utf-8") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    for row in rows:
        row |= {metric: float(row[metric] or "nan") for metric in (*SUMMARY_METRICS, "validation_auc")}
        row |= {"home": row["home"] == "True", "seed": int(row["seed"]), "bytes_per_round": int(row["bytes_per_round"])}
    return rows


def tabulate_methods(rows: Sequence[Mapping[str, Any]], metric: str = "auc") -> str:
    """Return a table with a line per method and shots, and a column per setting with its bytes per round."""
    found = {
        (row["method"], row["shots"], row["setting"]): row
        for row in summarise(rows, str(rows[0]["method"]))
        if row["metric"] == metric
    }
    shots = list(dict.fromkeys(key[1] for key in found))
    settings = [setting for setting in SETTINGS if any(key[2] == setting for key in found)]
    lines = [
        f"| method | {' | '.join(SETTINGS[setting].heading for setting in settings)} |",
        f"|---|{'---|' * len(settings)}",
    ]
    for count in shots:
        if len(shots) > 1:
            told = f"{count} images per class and site" if count else "all images"
            lines.append(f"| **{told}** |{' |' * len(settings)}")
        for method in dict.fromkeys(key[0] for key in found if key[1] == count):
            cells = [_tell_cell(found.get((method, count, setting))) for setting in settings]
            lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def tabulate_sites(rows: Sequence[Mapping[str, Any]], metric: str = "auc") -> str:
    """Return a table with a line per method and setting, and a column per site: federated minus local."""
    compared = compare_with_local(choose_home(rows), metric)
    sites = list(dict.fromkeys(row["site"] for row in compared))
    gains = {(row["method"], row["shots"], row["setting"], row["site"]): row for row in compared}
    lines = [f"| method | setting | {' | '.join(sites)} |", f"|---|---|{'---|' * len(sites)}"]
    for method, shots, setting in dict.fromkeys(key[:3] for key in gains):
        cells = [_tell_gain(gains.get((method, shots, setting, site))) for site in sites]
        lines.append(f"| {method}, {_tell_shots(shots)} | {SETTINGS[setting].heading} | {' | '.join(cells)} |")
    return "\n".join(lines)


def tabulate_gains(rows: Sequence[Mapping[str, Any]], metric: str = "auc") -> str:
    """Return a table with a line per method and shots: each setting minus local."""
    sent = {(row["method"], row["shots"], row["setting"]): row["bytes_per_round"] for row in rows}
    compared = _compare_cells(choose_home(rows), metric)
    settings = [setting for setting in SETTINGS if any(key[2] == setting for key in compared)]
    headings = ["method", "shots", "runs", SETTINGS["local"].heading, *(SETTINGS[own].heading for own in settings)]
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for method, shots in dict.fromkeys(key[:2] for key in compared):
        found = [compared.get((method, shots, setting)) for setting in settings]
        known = [row for row in found if row is not None]
        gains = [
            "–" if row is None else f"{_tell_gain(row)}, {_tell_helped(row, sent[method, shots, row['setting']])}"
            for row in found
        ]
        runs = "/".join(str(count) for count in sorted({row["runs"] for row in known}))
        lines.append(f"| {method} | {shots or 'all'} | {runs} | {known[0]['local']:.3f} | {' | '.join(gains)} |")
    return "\n".join(lines)


def tabulate_paired(rows: Sequence[Mapping[str, Any]], metric: str = "auc") -> str:
    """Return a table with a line per method and shots: the difference from the first method, paired run by run."""
    reference = str(rows[0]["method"])
    settings = [setting for setting in SETTINGS if any(row["setting"] == setting for row in rows)]
    found = {
        (row["method"], row["shots"], row["setting"]): row
        for row in summarise(rows, reference)
        if row["metric"] == metric and row["pairs"] and row["method"] != reference
    }
    lines = [
        f"| minus {reference} | {' | '.join(SETTINGS[setting].heading for setting in settings)} |",
        f"|---|{'---|' * len(settings)}",
    ]
    for method, shots in dict.fromkeys(key[:2] for key in found):
        cells = [_tell_gain(found.get((method, shots, setting))) for setting in settings]
        lines.append(f"| {method}, {_tell_shots(shots)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def tabulate_worth(rows: Sequence[Mapping[str, Any]], metric: str = "auc") -> str:
    """Return a table with a line per method and shots: the federated and the chosen models minus local ones.

    A method's federated setting is the one whose head is shared, if it has both.
    """
    rows = choose_home(rows)
    sent = {(row["method"], row["shots"], row["setting"]): row["bytes_per_round"] for row in rows}
    auc, balanced = _compare_cells(rows, metric), _compare_cells(rows, "balanced_accuracy")
    sites = compare_with_local(rows, metric)
    lines = [
        "| sent by a site | images per class | best local model | federated | gain | of it, balanced accuracy | "
        "gain of each site's choice | its lowest site |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method, shots in dict.fromkeys(key[:2] for key in auc):
        federated = _find_federated(auc, method, shots)
        chosen = (method, shots, "chosen")
        lowest = min(row["difference"] for row in sites if (row["method"], row["shots"], row["setting"]) == chosen)
        own = auc[federated]
        cells = [
            f"{method}, {_tell_bytes(sent[federated])} per round",
            shots or "all",
            f"{own['local']:.3f}",
            f"{own['local'] + own['difference']:.3f}",
            f"{_tell_gain(own)}, {own['helped']} of {own['sites']} sites",
            _tell_gain(balanced[federated]),
            _tell_gain(auc[chosen]),
            signed(lowest),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def tabulate_pooled(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table with a line per method and shots: models on the test images of all sites together.

    The local number is the mean over the sites' best local models.
    """
    rows = choose_home(rows)
    auc, balanced = (_compare_cells(rows, metric) for metric in POOLED_METRICS)
    lines = [
        "| sent by a site | images per class | AUC, local | federated | gain | balanced accuracy, local | federated | "
        "gain |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method, shots in dict.fromkeys(key[:2] for key in auc):
        federated = _find_federated(auc, method, shots)
        cells = [method, shots or "all"]
        for own in (auc[federated], balanced[federated]):
            cells += [f"{own['local']:.3f}", f"{own['local'] + own['difference']:.3f}", _tell_gain(own)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


TABLES: Mapping[str, Callable[[Sequence[Mapping[str, Any]]], str]] = {
    "methods": tabulate_methods,
    "accuracy": partial(tabulate_methods, metric="accuracy"),
    "sites": tabulate_sites,
    "gains": tabulate_gains,
    "paired": tabulate_paired,
    "worth": tabulate_worth,
    "supported_worth": partial(tabulate_worth, metric="supported_auc"),
    "pooled": tabulate_pooled,
}
COMPARED_WITH_HOME = ("sites", "gains", "worth", "supported_worth", "pooled")
_MARK = re.compile(r"<!-- (?P<name>\w+):(?P<table>\w+)(?: of (?P<methods>[^>]*?))? -->\n")
_END = "<!-- end -->"


def fill_page(text: str, name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a page with all tables of a benchmark for which it has marks.

    Raises:
        ValueError: for a mark without an end, for an unknown table, or for a method without results.
    """
    parts, place = [], 0
    for mark in _MARK.finditer(text):
        if mark["name"] != name:
            continue
        told, closed = mark[0].strip(), text.find(_END, mark.end())
        if closed < 0 or ((following := _MARK.search(text, mark.end())) and following.start() < closed):
            raise ValueError(f"{told} has no {_END}")
        if mark["table"] not in TABLES:
            raise ValueError(f"{told} is none of {', '.join(TABLES)}")
        # Rows that the table does not show may have the best local model.
        given = choose_home(rows) if mark["table"] in COMPARED_WITH_HOME else rows
        parts += [text[place : mark.end()], TABLES[mark["table"]](_choose_rows(given, mark["methods"], told)), "\n"]
        place = closed
    return "".join(parts) + text[place:]


def _choose_rows(rows: Sequence[Mapping[str, Any]], methods: str | None, told: str) -> list[Mapping[str, Any]]:
    """Return the rows of the methods that a mark names, in its order; all if it names none."""
    if methods is None:
        return list(rows)
    try:
        (names,) = csv.reader([methods], skipinitialspace=True, strict=True)
    except csv.Error as error:
        raise ValueError(f"{told}: names are separated as in CSV, but reading them fails: {error}") from error
    chosen = []
    for method in names:
        found = [row for row in rows if row["method"] == method]
        if not found:
            raise ValueError(f"{told}: there are no results of '{method}'")
        chosen += found
    return chosen


def main(
    results: Annotated[
        Path, typer.Argument(help="results.csv of a benchmark; marks begin with the name of this file.")
    ],
    check: Annotated[bool, typer.Option(help="Write nothing; fail if a page would change.")] = False,
    picture: Annotated[Path | None, typer.Option(help="Also draw accuracy against bytes, as PNG.")] = None,
) -> None:
    """Fill the pages' tables from one benchmark's results."""
    rows = read_results(results)
    if picture is not None:
        write_bytes(picture, draw_benchmark(summarise(rows, str(rows[0]["method"]))))
    stale = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        filled = fill_page(text, results.stem, rows)
        if filled != text:
            stale.append(str(page))
            if not check:
                write_text(page, filled)
    typer.echo(f"{', '.join(stale) or 'nothing'} {'would change' if check else 'changed'}")
    if check and stale:
        sys.exit(1)


def _compare_cells(rows: Sequence[Mapping[str, Any]], metric: str) -> dict[tuple[str, str, str], Mapping[str, Any]]:
    """Return the differences from local models, by method, shots and setting."""
    return {(row["method"], row["shots"], row["setting"]): row for row in compare_means_with_local(rows, metric)}


def _find_federated(cells: Mapping[tuple[str, str, str], object], method: str, shots: str) -> tuple[str, str, str]:
    """Return a method's federated cell: the one whose head is shared, if it has both."""
    shared = (method, shots, "federated+head")
    return shared if shared in cells else (method, shots, "federated")


def _tell_cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "–"
    value = f"{row['mean']:.3f}" if math.isnan(row["sd"]) else f"{row['mean']:.3f} ± {row['sd']:.3f}"
    # Training was still improving when it stopped, at one site at least.
    value += " †" if row["improving"] else ""
    return f"{value} ({_tell_bytes(row['bytes_per_round'])})" if row["bytes_per_round"] else value


def _tell_gain(row: Mapping[str, Any] | None) -> str:
    if row is None or math.isnan(row["difference"]):
        return "–"
    interval = "" if math.isnan(row["low"]) else f" ({signed(row['low'])} to {signed(row['high'])})"
    return f"{signed(row['difference'])}{interval}"


def _tell_helped(row: Mapping[str, Any], count: int) -> str:
    helped = f"{row['helped']} of {row['sites']} sites"
    return f"{helped}, {_tell_bytes(count)}" if count else helped


def _tell_shots(shots: str) -> str:
    return f"{shots} shots" if shots else "all images"


def _tell_bytes(count: int) -> str:
    for unit, size in (("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"


if __name__ == "__main__":
    typer.run(main)
