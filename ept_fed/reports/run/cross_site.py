"""The cross-site matrix: each site's local model on every site's test images, as a table on disk and as an array.

A model is a site's own prompts and head. In a simulation only: across hospitals no such model travels.
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
    """How well each site's local model does at each site.

    Attributes:
        sites: the S names.
        auc: (S, S), [model, tested on]: one-vs-rest AUC averaged over the classes of the site tested on, the same ones
            down a whole column. NaN if the model was never trained on one of them: an average over the others would
            flatter it.
        classes: for each site tested on, over how many classes the average goes: those with test images there, with and
            without the class.
        all_classes: C.
    """

    sites: tuple[str, ...]
    auc: Array
    classes: tuple[int, ...]
    all_classes: int


def write_cross_site(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write cross_site.csv: one row per model, site tested on and class; what is undefined is an empty cell.

    Args:
        folder: the run folder.
        rows: of model, tested_on, class, auc, and how many test images the one and training images the other site has
            of the class.
    """
    shown = [row | {"auc": "" if math.isnan(row["auc"]) else f"{row['auc']:.6f}"} for row in map(dict, rows)]
    write_csv(folder / CROSS_SITE_FILE, shown, _COLUMNS)


def read_cross_site(
    path: Path, sites: Sequence[str], classes: Sequence[str], problems: list[Problem]
) -> CrossSite | None:
    """Read what `write_cross_site` wrote; None if the run has no such file, or with a problem if it is broken."""
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
        fix = f"has {len(rows)} rows where {len(wanted)} models, sites and classes meet; restore or remove the file"
        problems.append(Problem(path.name, str(path), fix))
        return None
    cells = np.array([[[auc[model, tested, name] for name in classes] for tested in sites] for model in sites])
    # A class is defined at a site if any model has a value for it there.
    defined = ~np.isnan(cells).all(axis=0)
    known = np.array([[(model, name) in trained for name in classes] for model in sites])
    counts = defined.sum(axis=1)
    matrix = np.full((len(sites), len(sites)), np.nan)
    for i, j in np.ndindex(matrix.shape):
        if counts[j] and known[i][defined[j]].all():
            matrix[i, j] = cells[i, j][defined[j]].mean()
    return CrossSite(tuple(sites), matrix, tuple(int(count) for count in counts), len(classes))
