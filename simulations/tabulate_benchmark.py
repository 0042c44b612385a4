"""Write a benchmark's results into the README and the docs, as Markdown between two marks.

    python -m simulations.tabulate_benchmark results/ham10000.csv --name ham10000

Every number of those tables comes from here. A page takes a table where it has the line `<!-- NAME:methods -->`,
`<!-- NAME:sites -->` or `<!-- NAME:gains -->`; what stands between such a line and the next `<!-- end -->` is replaced.
`--check` writes nothing, and fails if a page is not as it would be.
"""

import csv
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ept_fed.artefacts import write_text
from ept_fed.benchmark_settings import SETTINGS
from ept_fed.evaluation.benchmark import SUMMARY_METRICS, compare_means_with_home, compare_with_home, summarise

__all__ = ["PAGES", "fill_page", "read_results", "tabulate_all", "tabulate_gains", "tabulate_methods", "tabulate_sites"]

PAGES = (Path("README.md"), Path("docs/benchmark.md"), Path("docs/differential-privacy.md"))


def read_results(path: Path) -> list[dict[str, Any]]:
    """Read results.csv as the benchmark writes it."""
    with path.open(newline="", encoding="utf-8") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    for row in rows:
        row |= {metric: float(row[metric] or "nan") for metric in SUMMARY_METRICS}
        row |= {"seed": int(row["seed"]), "bytes_per_round": int(row["bytes_per_round"])}
    return rows


def tabulate_methods(rows: Sequence[Mapping[str, Any]], metric: str = "auc") -> str:
    """Return a table with a line per method and shots: bytes per round beside each way of working together."""
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
            lines.append(f"| **{count} images per class and site** |{' |' * len(settings)}")
        for method in dict.fromkeys(key[0] for key in found if key[1] == count):
            cells = [_tell_cell(found.get((method, count, setting))) for setting in settings]
            lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def tabulate_sites(rows: Sequence[Mapping[str, Any]], methods: Sequence[str], metric: str = "auc") -> str:
    """Return a table with a line per method and setting, and a column per site: gains over staying home."""
    compared = [row for row in compare_with_home(rows, metric) if row["method"] in methods]
    sites = list(dict.fromkeys(row["site"] for row in compared))
    gains = {(row["method"], row["shots"], row["setting"], row["site"]): row for row in compared}
    lines = [f"| method | setting | {' | '.join(sites)} |", f"|---|---|{'---|' * len(sites)}"]
    for method, shots, setting in dict.fromkeys(key[:3] for key in gains):
        cells = [_tell_gain(gains.get((method, shots, setting, site))) for site in sites]
        lines.append(f"| {method}, {shots} shots | {SETTINGS[setting].heading} | {' | '.join(cells)} |")
    return "\n".join(lines)


def tabulate_gains(rows: Sequence[Mapping[str, Any]], metric: str = "auc") -> str:
    """Return a table with a line per method and shots: what each way of working together brought over staying home."""
    sent = {(row["method"], row["shots"], row["setting"]): row["bytes_per_round"] for row in rows}
    compared = {(row["method"], row["shots"], row["setting"]): row for row in compare_means_with_home(rows, metric)}
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
        lines.append(f"| {method} | {shots or 'all'} | {runs} | {known[0]['home']:.3f} | {' | '.join(gains)} |")
    return "\n".join(lines)


def tabulate_all(rows: Sequence[Mapping[str, Any]], name: str, sites_of: Sequence[str] = ()) -> dict[str, str]:
    """Return every table of a benchmark by its mark; the table of sites is about some methods, or about all."""
    methods = sites_of or list(dict.fromkeys(str(row["method"]) for row in rows))
    return {
        f"{name}:methods": tabulate_methods(rows),
        f"{name}:sites": tabulate_sites(rows, methods),
        f"{name}:gains": tabulate_gains(rows),
    }


def fill_page(text: str, tables: Mapping[str, str]) -> str:
    """Return a page with every table that it has marks for.

    Raises:
        ValueError: for a mark without an end.
    """
    for mark, table in tables.items():
        start, end = f"<!-- {mark} -->", "<!-- end -->"
        before, found, rest = text.partition(start)
        if found:
            _old, closed, after = rest.partition(end)
            if not closed:
                raise ValueError(f"{start} has no {end}")
            text = f"{before}{start}\n{table}\n{end}{after}"
    return text


def main(
    results: Annotated[Path, typer.Argument(help="results.csv of a benchmark.")],
    name: Annotated[str, typer.Option(help="What the pages' marks begin with.")],
    sites_of: Annotated[
        list[str] | None, typer.Option("--sites-of", help="Methods of the table of sites; repeatable.")
    ] = None,
    check: Annotated[bool, typer.Option(help="Write nothing; fail if a page would change.")] = False,
) -> None:
    """Fill the pages' tables from one benchmark's results."""
    rows = read_results(results)
    tables = tabulate_all(rows, name, sites_of or ())
    stale = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        filled = fill_page(text, tables)
        if filled != text:
            stale.append(str(page))
            if not check:
                write_text(page, filled)
    typer.echo(f"{', '.join(stale) or 'nothing'} {'would change' if check else 'changed'}")
    if check and stale:
        sys.exit(1)


def _tell_cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "–"
    value = f"{row['mean']:.3f}" if math.isnan(row["sd"]) else f"{row['mean']:.3f} ± {row['sd']:.3f}"
    return f"{value} ({_tell_bytes(row['bytes_per_round'])})" if row["bytes_per_round"] else value


def _tell_gain(row: Mapping[str, Any] | None) -> str:
    if row is None or math.isnan(row["difference"]):
        return "–"
    interval = "" if math.isnan(row["low"]) else f" ({row['low']:+.3f} to {row['high']:+.3f})"
    return f"{row['difference']:+.3f}{interval}".replace("-", "−")


def _tell_helped(row: Mapping[str, Any], count: int) -> str:
    helped = f"{row['helped']} of {row['sites']} sites"
    return f"{helped}, {_tell_bytes(count)}" if count else helped


def _tell_bytes(count: int) -> str:
    for unit, size in (("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"


if __name__ == "__main__":
    typer.run(main)
