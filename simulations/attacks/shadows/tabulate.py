"""Collect the results of full attacks in one CSV, and write its table into a page between two marks.

    python -m simulations.attacks.shadows.tabulate results/attacks/ham10000.csv --add "prompts only=runs/prompts"
    python -m simulations.attacks.shadows.tabulate results/attacks/ham10000.csv --check

`--add LABEL=RUN` takes the rows of RUN/attack-full.csv in place of those with this label. The table stands in
docs/attacks.md between a line such as `<!-- attacks:ham10000 -->` and the next `<!-- end -->`.
"""

import csv
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer

from ept_fed.storage.files import write_csv, write_text
from simulations.attacks.shadows.record import FullRow
from simulations.attacks.shadows.scores import KNOWN, OFFLINE, ONLINE, THRESHOLD, TURN

__all__ = ["PAGE", "fill_page", "tabulate"]

PAGE = Path("docs/attacks.md")
_COLUMNS = ["sent", *(field.name for field in fields(FullRow))]
_ATTACKS = {ONLINE: "", OFFLINE: ", offline", THRESHOLD: ", without shadow runs"}
_PARTS = {"membership": "", "others": "", "control": ", *members at random*", "known": ""}

Row = Mapping[str, str]


def tabulate(rows: Sequence[Row]) -> str:
    """Return a Markdown table with a line for each view and attack, of all targets together where there are several."""
    lines = [
        "| sent by a site | seen by the attacker | AUC | found at 1 % | found at 0.1 % |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        if row["target"] != TURN and row["part"] != "others":
            continue
        if row["part"] == "known" and row["attack"] != ONLINE:
            continue
        seen = f"*{row['seen']}*" if row["seen"] == KNOWN else row["seen"]
        how = _ATTACKS.get(row["attack"], f", {row['attack']}, this run")
        cells = [
            f"{_number(row[name], name)} [{_number(row[f'{name}_low'], name)}, {_number(row[f'{name}_high'], name)}]"
            for name in ("auc", "at_1", "at_01")
        ]
        lines.append(f"| {row['sent']} | {seen}{how}{_PARTS[row['part']]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def fill_page(text: str, name: str, rows: Sequence[Row]) -> str:
    """Return the text of a page with the table between its marks.

    Raises:
        ValueError: if the page has no such marks.
    """
    pattern = re.compile(rf"(<!-- attacks:{re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    filled, count = pattern.subn(lambda mark: f"{mark[1]}{tabulate(rows)}\n{mark[2]}", text)
    if count != 1:
        raise ValueError(f"there are {count} places <!-- attacks:{name} --> with an end; one is needed")
    return filled


def main(
    results: Annotated[Path, typer.Argument(help="CSV with the rows of all attacks.")],
    add: Annotated[list[str] | None, typer.Option(metavar="LABEL=RUN", help="Take a run's rows.")] = None,
    check: Annotated[bool, typer.Option(help="Write nothing; fail if the page would change.")] = False,
) -> None:
    """Collect results, and fill the page's table."""
    rows = _read(results) if results.exists() else []
    for entry in add or ():
        label, _, run = entry.partition("=")
        fresh = [{"sent": label, **row} for row in _read(Path(run) / "attack-full.csv")]
        rows = [*(row for row in rows if row["sent"] != label), *fresh]
    text = PAGE.read_text(encoding="utf-8")
    filled = fill_page(text, results.stem, rows)
    if check:
        sys.exit(filled != text)
    results.parent.mkdir(parents=True, exist_ok=True)
    write_csv(results, rows, _COLUMNS)
    write_text(PAGE, filled)


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _number(text: str, name: str) -> str:
    value = float(text or "nan")
    if math.isnan(value):
        return "–"
    return f"{value:.2f}" if name == "auc" else f"{100 * value:.1f} %"


if __name__ == "__main__":
    typer.run(main)
