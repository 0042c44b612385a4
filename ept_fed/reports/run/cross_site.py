"""The cross-site matrix: each site's local model on the test images of every site, as a CSV table and as an array.

A local model is a site's own prompts and head. The matrix exists only in simulations: real hospitals never send such a
model.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ept_fed.errors import Problem
from ept_fed.evaluation.metrics import Array
from ept_fed.storage.files import write_csv

__all__ = ["CROSS_SITE_FILE", "CrossSite", "read_cross_site", "write_cross_site"]

CROSS_SITE_FILE = "cross_site.csv"

_COLUMNS = ("model", "tested_on", "class", "auc", "test_images", "training_images")


@dataclass(frozen=True)
class CrossSite:
    """The AUC of each site's local model at each site.

    Attributes:
        sites: names of the S sites.
        auc: (S, S), [model, tested on]: one-vs-rest AUC, averaged over the classes of the site tested on, which are the
            same in a whole column. NaN if the model was not trained on one of these classes, because an average over
            the others would be too good.
        classes: for each site tested on, the number of classes in the average. These are the classes that some test
            images there have and others do not.
        all_classes: C, the number of all classes.
    """

    sites: tuple[str, ...]
    auc: Array
    classes: tuple[int, ...]
    all_classes: int


def write_cross_site(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write cross_site.csv: one row per model, site tested on and class; undefined values are empty cells.

    Args:
        folder: the run folder.
        rows: rows with model, tested_on, class, auc, the test images of the class at the site tested on, and the
            training images of the class at the model's site.
    """
    shown = [row | {"auc": "" if math.isnan(row["auc"]) else f"{row['auc']:.6f}"} for row in map(dict, rows)]
    write_csv(folder / CROSS_SITE_FILE, shown, _COLUMNS)


def read_cross_site(
    path: Path, sites: Sequence[str], classes: Sequence[str], problems: list[Problem]
) -> CrossSite | None:
    """Return the matrix in cross_site.csv; None if there is no file, or, with a problem added, if it is damaged."""
    if not path.exists():
        return None
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        auc = {(row["model"], row["tested_on"], row["class"]): float(row["auc"] or "nan") for row in rows}
        trained = {(row["model"], row["class"]) for row in rows if int(row["training_images"])}
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, TypeError, ValueError) as error:
        problems.append(Problem(path.name, str(path), f"cannot be read ({error}); restore or remove the file"))
        return None
    wanted = {(model, tested, name) for model in sites for tested in sites for name in classes}
    if set(auc) != wanted or len(rows) != len(wanted):
        fix = f"has {len(rows)} rows, not {len(wanted)} (one per model, site and class); restore or remove the file"
        problems.append(Problem(path.name, str(path), fix))
        return None
    cells = np.array([[[auc[model, tested, name] for name in classes] for tested in sites] for model in sites])
    # The AUC of a class is defined at a site if at least one model has a value there.
    defined = ~np.isnan(cells).all(axis=0)
    known = np.array([[(model, name) in trained for name in classes] for model in sites])
    counts = defined.sum(axis=1)
    matrix = np.full((len(sites), len(sites)), np.nan)
    for i, j in np.ndindex(matrix.shape):
        if counts[j] and known[i][defined[j]].all():
            matrix[i, j] = cells[i, j][defined[j]].mean()
    return CrossSite(tuple(sites), matrix, tuple(int(count) for count in counts), len(classes))
