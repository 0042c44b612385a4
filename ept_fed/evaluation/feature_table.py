"""The measures of several methods' features as one tidy table, over all sites' images and at each site."""

from collections.abc import Mapping, Sequence
from typing import Any

from ept_fed.evaluation.features import measure_features
from ept_fed.evaluation.metrics import Array

__all__ = ["ALL_CLASSES", "ALL_SITES", "measure_sites", "merge_notes"]

ALL_SITES = "all sites pooled"
ALL_CLASSES = "all"


def measure_sites(
    features: Array, labels: Array, places: Array, sites: Sequence[str], classes: Sequence[str]
) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """Return rows of `site`, `class`, `measure` and `value`, and (site, sentence) for what could not be measured.

    Args:
        features: (n, D).
        labels: (n,) class indices.
        places: (n,) indices of `sites`.
        sites: names.
        classes: names.
    """
    rows, notes = [], []
    for site, chosen in ((ALL_SITES, places >= 0), *((name, places == index) for index, name in enumerate(sites))):
        found, sentences = measure_features(features[chosen], labels[chosen], classes)
        notes += [(site, sentence) for sentence in sentences]
        rows += [
            {"site": site, "class": label or ALL_CLASSES, "measure": name, "value": value}
            for label, name, value in found
        ]
    return rows, notes


def merge_notes(notes: Mapping[str, Sequence[tuple[str, str]]]) -> list[str]:
    """Return sentences; what holds everywhere is said once, anything else with where it holds.

    Args:
        notes: (site, sentence) by where they were made, such as "ept, after tuning".
    """
    found: dict[tuple[str, str], list[str]] = {}
    for where, said in notes.items():
        for note in said:
            found.setdefault(note, []).append(where)
    return [
        f"{site}: {sentence}" + ("" if len(places) == len(notes) else f" ({'; '.join(places)})")
        for (site, sentence), places in found.items()
    ]
