"""Reading a site's predictions.csv into arrays with the same images in the same order in every setting."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ept_fed.errors import Problem
from ept_fed.evaluation.metrics import Array
from ept_fed.reports.run.predictions import SUBGROUP_PREFIX, prediction_columns

__all__ = ["PredictionTable", "SitePredictions", "read_predictions"]

_SEPARATOR = "|"
_SPLITS = ("validation", "test")
_MAX_PROBLEMS = 20


@dataclass(frozen=True)
class PredictionTable:
    """Predictions on the images of one split.

    Attributes:
        images: (n,) names of the images.
        groups: (n,) patient or lesion of each image; the image itself if no group is known.
        labels: (n,) class indices, or (n, C) in {0, 1} for multi-label.
        scores: setting -> (n, C) probabilities.
        subgroups: name -> (n,) value of each image, empty if it has no value.
    """

    images: tuple[str, ...]
    groups: tuple[str, ...]
    labels: Array
    scores: Mapping[str, Array]
    subgroups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class SitePredictions:
    """Predictions on a site's test images and, if available, validation images, with notes for the reader."""

    test: PredictionTable
    validation: PredictionTable | None
    grouped: bool
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Row:
    image: str
    group: str
    labels: tuple[int, ...]
    scores: tuple[float, ...]
    subgroups: tuple[str, ...]


def read_predictions(
    path: Path, classes: Sequence[str], settings: Sequence[str], task: str, problems: list[Problem]
) -> SitePredictions | None:
    """Return the predictions in a file that was written from `list_predictions`.

    Args:
        path: path of predictions.csv.
        classes: classes in the order of the run.
        settings: settings for which every image needs a row.
        task: single_label or multi_label.
        problems: list to which problems are appended, with file and line.

    Returns:
        the predictions, or None if there was a problem. An image without finite probabilities in one of the settings is
        removed from all settings, and a note states the number of such images.
    """
    before = len(problems)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            header = tuple(reader.fieldnames or ())
            subgroups = tuple(name for name in header if name.startswith(SUBGROUP_PREFIX))
            odd = sorted({*prediction_columns(classes)} ^ {*header}.difference(subgroups))
            if odd:
                problems.append(Problem(str(path), ", ".join(odd), "columns missing or unknown for the run's classes"))
                return None
            rows = _read_rows(reader, path, classes, subgroups, settings, task, problems)
    except FileNotFoundError:
        problems.append(Problem("predictions.csv", str(path), "is missing; restore the file"))
        return None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        problems.append(Problem("predictions.csv", str(path), f"cannot be read ({error})"))
        return None
    tables = {split: _align(rows, split, settings, path, problems) for split in _SPLITS}
    if len(problems) > before:
        hidden = len(problems) - before - _MAX_PROBLEMS
        if hidden > 0:
            del problems[before + _MAX_PROBLEMS :]
            problems.append(Problem(str(path), f"{hidden} more problems", "correct the ones above first"))
        return None
    names = [name.removeprefix(SUBGROUP_PREFIX) for name in subgroups]
    return _assemble(tables, settings, task, len(classes), names)


def _read_rows(
    reader: "csv.DictReader[str]",
    path: Path,
    classes: Sequence[str],
    subgroups: Sequence[str],
    settings: Sequence[str],
    task: str,
    problems: list[Problem],
) -> dict[tuple[str, str], dict[str, _Row]]:
    """Return (split, setting) -> image -> row."""
    index = {name: place for place, name in enumerate(classes)}
    rows: dict[tuple[str, str], dict[str, _Row]] = {}
    for cells in reader:
        where = f"{path.parent.name}/{path.name} line {reader.line_num}"
        if None in cells or None in cells.values():
            problems.append(
                Problem(where, cells.get("image"), "does not have as many cells as the header; is the line incomplete?")
            )
            continue
        split, setting, image = cells["split"], cells["setting"], cells["image"]
        names = (
            [name for name in cells["label"].split(_SEPARATOR) if name] if task == "multi_label" else [cells["label"]]
        )
        unknown = [name for name in names if name not in index]
        if unknown:
            problems.append(
                Problem(f"{where}: label", unknown[0], f"is not one of the run's classes: {', '.join(classes)}")
            )
        if split not in _SPLITS:
            problems.append(Problem(f"{where}: split", split, f"must be one of {', '.join(_SPLITS)}"))
        if setting not in settings:
            problems.append(
                Problem(
                    f"{where}: setting", setting, f"must be one of the settings in report.json: {', '.join(settings)}"
                )
            )
        scores = _read_scores([cells[f"p[{name}]"] for name in classes], where, task, problems)
        if unknown or scores is None:
            continue
        known = rows.setdefault((split, setting), {})
        if image in known:
            problems.append(Problem(f"{where}: image", image, f"appears twice in setting '{setting}'"))
        labels, stated = tuple(index[name] for name in names), tuple(cells[name] for name in subgroups)
        known[image] = _Row(image, cells["group"], labels, scores, stated)
    return rows


def _read_scores(cells: Sequence[str], where: str, task: str, problems: list[Problem]) -> tuple[float, ...] | None:
    try:
        scores = tuple(float(cell) if cell else float("nan") for cell in cells)
    except ValueError:
        problems.append(Problem(where, ", ".join(cells), "contains a probability that is not a number"))
        return None
    finite = [score for score in scores if np.isfinite(score)]
    outside = any(not 0 <= score <= 1 for score in finite)
    if outside or (task == "single_label" and len(finite) == len(scores) and abs(sum(scores) - 1) > 1e-3):
        problems.append(
            Problem(
                where,
                ", ".join(cells),
                "are not probabilities; these must be between 0 and 1, and sum to 1 for a single label",
            )
        )
        return None
    return scores


def _align(
    rows: Mapping[tuple[str, str], Mapping[str, _Row]],
    split: str,
    settings: Sequence[str],
    path: Path,
    problems: list[Problem],
) -> list[list[_Row]]:
    """Return one list of rows per setting, with the same order of images; add a problem if settings do not match."""
    parts = [rows.get((split, setting), {}) for setting in settings]
    for setting, part in zip(settings[1:], parts[1:], strict=True):
        if set(part) != set(parts[0]):
            odd = sorted(set(part) ^ set(parts[0]))
            fix = f"{len(odd)} {split} image(s) are not in both '{settings[0]}' and '{setting}'; settings must match"
            problems.append(Problem(str(path), odd[0], fix))
            return []
        differing = [image for image, row in part.items() if _identity(row) != _identity(parts[0][image])]
        if differing:
            problems.append(
                Problem(str(path), differing[0], f"has another label, group or subgroup in setting '{setting}'")
            )
            return []
    return [[part[image] for image in parts[0]] for part in parts]


def _identity(row: _Row) -> tuple[object, ...]:
    return row.labels, row.group, row.subgroups


def _assemble(
    tables: Mapping[str, list[list[_Row]]], settings: Sequence[str], task: str, classes: int, subgroups: Sequence[str]
) -> SitePredictions:
    notes: list[str] = []
    built: dict[str, PredictionTable] = {}
    for split, parts in tables.items():
        images = len(parts[0]) if parts else 0
        kept = [i for i in range(images) if all(np.isfinite(part[i].scores).all() for part in parts)]
        if len(kept) < images:
            notes.append(
                f"{images - len(kept)} of {images} {split} images have no finite probabilities in some setting; "
                "they are excluded from all numbers of this report."
            )
        first = [parts[0][i] for i in kept] if parts else []
        built[split] = PredictionTable(
            images=tuple(row.image for row in first),
            groups=tuple(row.group or f"image {row.image}" for row in first),
            labels=_stack_labels(first, task, classes),
            scores={
                setting: np.array([part[i].scores for i in kept], dtype=np.float64).reshape(len(kept), classes)
                for setting, part in zip(settings, parts, strict=True)
            },
            subgroups={name: tuple(row.subgroups[place] for row in first) for place, name in enumerate(subgroups)},
        )
    test = built["test"]
    without = sum(group == f"image {image}" for group, image in zip(test.groups, test.images, strict=True))
    grouped = len(set(test.groups)) < len(test.groups)
    if without:
        notes.append(
            f"{without} of {len(test.images)} test images have no patient id; each of them counts as one patient."
        )
    elif not grouped and test.images:
        notes.append(
            "No two test images share a patient or lesion: the intervals treat every image as a separate patient."
        )
    return SitePredictions(test, built["validation"] if built["validation"].images else None, grouped, tuple(notes))


def _stack_labels(rows: Sequence[_Row], task: str, classes: int) -> Array:
    if task == "single_label":
        return np.array([row.labels[0] for row in rows], dtype=np.int64)
    hot = np.zeros((len(rows), classes), dtype=np.int64)
    for place, row in enumerate(rows):
        hot[place, list(row.labels)] = 1
    return hot
