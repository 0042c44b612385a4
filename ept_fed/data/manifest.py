"""The manifest source: a CSV with one row per image, next to a folder or .zip of images."""

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ept_fed.config import ManifestSettings
from ept_fed.data.images import open_images
from ept_fed.data.partition import find_unknown_sites
from ept_fed.data.records import ONE_SITE, Catalog, ImageRecord
from ept_fed.data.splits import find_straddling_groups
from ept_fed.problems import InputRefusedError, Problem

__all__ = ["read_manifest"]

_SPLIT_NAMES = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
_FLAGS = {"0": False, "0.0": False, "1": True, "1.0": True}
_SHOWN = 5


@dataclass(frozen=True)
class _Row:
    """One line of the CSV, stripped; `line` is its line in the file as an editor counts."""

    line: int
    cells: dict[str, str]


@dataclass
class _Findings:
    """Problems of single rows, gathered by field and fix so that a thousand bad rows make one line."""

    rows: dict[tuple[str, str], list[tuple[int, str]]] = field(default_factory=dict)

    def add(self, name: str, row: _Row, value: str, fix: str) -> None:
        self.rows.setdefault((name, fix), []).append((row.line, value))

    def to_problems(self) -> list[Problem]:
        problems = []
        for (name, fix), found in self.rows.items():
            values = [value for value, _ in Counter(value for _, value in found).most_common(_SHOWN)]
            lines = ", ".join(str(line) for line, _ in found[:_SHOWN])
            more = ", …" if len(found) > _SHOWN else ""
            where = f"({len(found)} row(s), line(s) {lines}{more})"
            problems.append(Problem(name, values[0] if len(values) == 1 else values, f"{fix} {where}"))
        return problems


def read_manifest(settings: ManifestSettings) -> Catalog:
    """Read the CSV (UTF-8, with or without a byte-order mark; commas) and open the image store.

    Classes are `settings.classes`, or else the sorted distinct labels, or the names of the label columns.
    Without a group column every image is a group of its own. Without a site column every record is at
    `ONE_SITE`. Whether the images exist is checked later, for those that are used. All sites are kept:
    `settings.sites` is only checked here, because splits must not depend on which sites a machine looks at.

    Raises:
        InputRefusedError: with everything wrong with the CSV and the store.
    """
    columns = settings.columns
    problems: list[Problem] = []
    try:
        store = open_images(settings.root / settings.images)
    except InputRefusedError as refused:
        problems += refused.problems
    rows = _read_rows(settings.root / settings.manifest, settings, problems)
    if not rows:
        raise InputRefusedError(problems)

    findings = _Findings()
    classes = _name_classes(settings, rows, problems)
    index = {name: position for position, name in enumerate(classes)}
    records = []
    for row in rows:
        labels = (
            _read_flags(settings, row, index, findings)
            if columns.labels
            else _read_label(settings, row, index, findings)
        )
        image = _require(row, "data.columns.image", columns.image, findings)
        site = _require(row, "data.columns.site", columns.site, findings) if columns.site else ONE_SITE
        group = _require(row, "data.columns.group", columns.group, findings) if columns.group else image
        records.append(
            ImageRecord(
                image=settings.image_name.replace("{image}", image),
                labels=labels,
                site=site,
                group=f"{site}/{group}" if columns.group and columns.group_scope == "site" else group,
                split=_read_split(row, columns.split, findings) if columns.split else None,
            )
        )
    problems += findings.to_problems()
    problems += _find_repeats(rows, columns.image)
    if columns.site and settings.virtual_sites is None:
        problems += find_unknown_sites(records, settings.sites)
    straddling = find_straddling_groups(records)
    if straddling:
        fix = f"{len(straddling)} group(s) have images in more than one split; give each group one split"
        problems.append(Problem("data.columns.split", straddling[:_SHOWN], fix))
    if problems:
        raise InputRefusedError(problems)
    return Catalog(tuple(records), classes, settings.task, store)


def _read_rows(path: Path, settings: ManifestSettings, problems: list[Problem]) -> list[_Row]:
    """Return the rows; an unusable file or header leaves problems and no rows."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            lines = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        problems.append(Problem("data.manifest", str(path), f"cannot be read as a UTF-8 CSV ({error})"))
        return []
    found = _check_header(header, settings)
    uneven = [line for line, cells in lines if len(cells) != len(header)]
    if uneven and not found:
        fix = f"{len(uneven)} row(s) differ from the header in length: line(s) {uneven[:_SHOWN]}"
        found.append(Problem("data.manifest", str(path), fix))
    if not lines:
        found.append(Problem("data.manifest", str(path), "has no rows; export it again"))
    problems += found
    if found:
        return []
    return [_Row(line, dict(zip(header, map(str.strip, cells), strict=True))) for line, cells in lines]


def _check_header(header: list[str], settings: ManifestSettings) -> list[Problem]:
    columns = settings.columns
    wanted: list[tuple[str, str | None]] = [
        ("image", columns.image),
        ("label", None if columns.labels else columns.label),
        *(("labels", name) for name in columns.labels or ()),
        ("site", columns.site),
        ("split", columns.split),
        ("group", columns.group),
    ]
    there = ", ".join(header) or "none"
    if len(header) == 1 and any(mark in header[0] for mark in ";\t"):
        there += " (cells must be separated by commas)"
    problems = []
    for role, name in wanted:
        if name is not None and name not in header:
            problems.append(Problem(f"data.columns.{role}", name, f"the manifest has no such column; it has: {there}"))
        elif name is not None and header.count(name) > 1:
            problems.append(Problem(f"data.columns.{role}", name, "the manifest names this column twice; rename one"))
    return problems


def _name_classes(settings: ManifestSettings, rows: Sequence[_Row], problems: list[Problem]) -> tuple[str, ...]:
    columns = settings.columns
    if columns.labels:
        classes = settings.classes or columns.labels
        if set(classes) != set(columns.labels):
            fix = f"must name the classes of data.columns.labels ({', '.join(columns.labels)}), in any order"
            problems.append(Problem("data.classes", list(classes), fix))
        return classes
    label = columns.label or ""
    classes = settings.classes or tuple(sorted({row.cells[label] for row in rows} - {""}))
    if len(classes) < 2:
        fix = "holds fewer than two classes; list all classes of the federation in data.classes"
        problems.append(Problem("data.columns.label", label, fix))
    return classes


def _read_label(settings: ManifestSettings, row: _Row, index: dict[str, int], findings: _Findings) -> tuple[int, ...]:
    label = _require(row, "data.columns.label", settings.columns.label or "", findings)
    if label and label not in index:
        fix = f"is not one of data.classes ({', '.join(index)}); add it there or correct the rows"
        findings.add("data.columns.label", row, label, fix)
    return (index[label],) if label in index else ()


def _read_flags(settings: ManifestSettings, row: _Row, index: dict[str, int], findings: _Findings) -> tuple[int, ...]:
    names = settings.columns.labels or ()
    bad = [row.cells[name] for name in names if row.cells[name] not in _FLAGS]
    for value in bad:
        findings.add("data.columns.labels", row, value, "must be 0 or 1")
    marked = [name for name in names if _FLAGS.get(row.cells[name], False)]
    if settings.task == "single_label" and not bad and len(marked) != 1:
        fix = "single_label needs exactly one 1 per row; correct the rows or set data.task=multi_label"
        findings.add("data.columns.labels", row, " ".join(marked), fix)
    return tuple(sorted(index[name] for name in marked if name in index))


def _read_split(row: _Row, column: str, findings: _Findings) -> str | None:
    split = _SPLIT_NAMES.get(row.cells[column].lower())
    if split is None:
        fix = f"is no split; use one of {', '.join(_SPLIT_NAMES)}"
        findings.add("data.columns.split", row, row.cells[column], fix)
    return split


def _require(row: _Row, name: str, column: str, findings: _Findings) -> str:
    if not row.cells[column]:
        findings.add(name, row, "", f"column '{column}' is empty; fill it in")
    return row.cells[column]


def _find_repeats(rows: Iterable[_Row], column: str) -> list[Problem]:
    counts = Counter(row.cells[column] for row in rows)
    repeated = [image for image, count in counts.items() if image and count > 1]
    if not repeated:
        return []
    fix = f"{len(repeated)} image(s) are listed more than once; list each once, with all its labels"
    return [Problem("data.columns.image", repeated[:_SHOWN], fix)]
