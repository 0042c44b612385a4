"""Reading of exported CSV files: rows with their line numbers, and problems collected by kind."""

import csv
import difflib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ept_fed.errors import Problem

__all__ = [
    "SHOWN",
    "Findings",
    "Row",
    "check_header",
    "find_repeats",
    "parse_split",
    "read_class",
    "read_flags",
    "read_table",
]

SHOWN = 5
_SPLIT_NAMES = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
_FLAGS = {"0": False, "0.0": False, "1": True, "1.0": True}


@dataclass(frozen=True)
class Row:
    """One row of a file, with stripped cells; `line` is its line number as in an editor."""

    line: int
    cells: dict[str, str]


@dataclass
class Findings:
    """Problems of single rows, collected by field and fix, so that a thousand bad rows give one problem."""

    rows: dict[tuple[str, str], list[tuple[int, str]]] = field(default_factory=dict)

    def add(self, name: str, line: int, value: str, fix: str) -> None:
        """Add a problem of one row."""
        self.rows.setdefault((name, fix), []).append((line, value))

    def require(self, row: Row, name: str, column: str) -> str:
        """Return a cell, and add a problem if it is empty."""
        if not row.cells[column]:
            self.add(name, row.line, "", f"column '{column}' is empty; fill it in")
        return row.cells[column]

    def to_problems(self) -> list[Problem]:
        """Return one problem per field and fix, with the most frequent values and the first lines."""
        problems = []
        for (name, fix), found in self.rows.items():
            values = [value for value, _ in Counter(value for _, value in found).most_common(SHOWN)]
            lines = ", ".join(str(line) for line, _ in found[:SHOWN])
            more = ", …" if len(found) > SHOWN else ""
            where = f"({len(found)} row(s), line(s) {lines}{more})"
            problems.append(Problem(name, values[0] if len(values) == 1 else values, f"{fix} {where}"))
        return problems


def read_table(path: Path, name: str, columns: Sequence[tuple[str, str | None]], problems: list[Problem]) -> list[Row]:
    """Read a CSV (UTF-8, with or without a byte-order mark; separated by commas).

    Args:
        path: the file.
        name: the setting that contains the path, for problems.
        columns: (setting, column) of every column that must exist exactly once; a column of None is not required.
        problems: problems of the file or its header are appended to it.

    Returns:
        The rows; empty if the file cannot be used.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [cell.strip() for cell in next(reader, [])]
            lines = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        problems.append(Problem(name, str(path), f"cannot be read as a UTF-8 CSV ({error})"))
        return []
    found = check_header(header, columns)
    uneven = [line for line, cells in lines if len(cells) != len(header)]
    if uneven and not found:
        fix = f"{len(uneven)} row(s) differ from the header in length: line(s) {uneven[:SHOWN]}"
        found.append(Problem(name, str(path), fix))
    if not lines:
        found.append(Problem(name, str(path), "has no rows; export it again"))
    problems += found
    if found:
        return []
    return [Row(line, dict(zip(header, map(str.strip, cells), strict=True))) for line, cells in lines]


def check_header(header: list[str], columns: Sequence[tuple[str, str | None]]) -> list[Problem]:
    """Return a problem for every required column that is missing or exists twice."""
    there = ", ".join(header) or "none"
    if len(header) == 1 and any(mark in header[0] for mark in ";\t"):
        there += " (cells must be separated by commas)"
    problems = []
    for setting, column in columns:
        if column is not None and column not in header:
            near = difflib.get_close_matches(column.lower(), [name.lower() for name in header], n=1, cutoff=0.75)
            hint = f"; did you mean '{next(name for name in header if name.lower() == near[0])}'?" if near else ""
            problems.append(Problem(setting, column, f"the file has no such column; it has: {there}{hint}"))
        elif column is not None and header.count(column) > 1:
            problems.append(Problem(setting, column, "the file names this column twice; rename one"))
    return problems


def find_repeats(rows: Iterable[Row], name: str, column: str) -> list[Problem]:
    """Return a problem if two rows have the same value in the column that identifies images."""
    counts = Counter(row.cells[column] for row in rows)
    repeated = [image for image, count in counts.items() if image and count > 1]
    if not repeated:
        return []
    fix = f"{len(repeated)} image(s) are listed more than once; list each once, with all its labels"
    return [Problem(name, repeated[:SHOWN], fix)]


def parse_split(row: Row, name: str, column: str, findings: Findings) -> str | None:
    """Return the split in a cell; an unknown split is added to the findings."""
    split = _SPLIT_NAMES.get(row.cells[column].lower())
    if split is None:
        findings.add(name, row.line, row.cells[column], f"is not a split; use one of {', '.join(_SPLIT_NAMES)}")
    return split


def read_class(row: Row, name: str, column: str, index: dict[str, int], findings: Findings) -> tuple[int, ...]:
    """Return the class index of a cell that holds a class name, as a tuple of one."""
    label = findings.require(row, name, column)
    if label and label not in index:
        fix = f"is not one of data.classes ({', '.join(index)}); add it there or correct the rows"
        findings.add(name, row.line, label, fix)
    return (index[label],) if label in index else ()


def read_flags(
    row: Row, name: str, columns: Sequence[str], index: dict[str, int], findings: Findings, *, exactly_one: bool
) -> tuple[int, ...]:
    """Return the class indices whose 0/1 columns hold 1, ascending."""
    bad = [row.cells[column] for column in columns if row.cells[column] not in _FLAGS]
    for value in bad:
        findings.add(name, row.line, value, "must be 0 or 1")
    marked = [column for column in columns if _FLAGS.get(row.cells[column], False)]
    if exactly_one and not bad and len(marked) != 1:
        fix = "single_label needs exactly one 1 per row; correct the rows or set data.task=multi_label"
        findings.add(name, row.line, " ".join(marked), fix)
    return tuple(sorted(index[column] for column in marked if column in index))
