"""The measures of several methods' features as one tidy table, for all sites' images together and for each site."""

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
    """Return rows of `site`, `class`, `measure` and `value`, and notes (site, sentence) on missing measures.

    Args:
        features: (n, D).
        labels: (n,) class indices.
        places: (n,) indices into `sites`.
        sites: names of the sites.
        classes: names of the classes.
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
    """Return the distinct notes as sentences; a note that does not apply everywhere lists the places where it does.

    Args:
        notes: (site, sentence) by the place to which they apply, such as "ept, after tuning".
    """
    found: dict[tuple[str, str], list[str]] = {}
    for where, said in notes.items():
        for note in said:
            found.setdefault(note, []).append(where)
    return [
        f"{site}: {sentence}" + ("" if len(places) == len(notes) else f" ({'; '.join(places)})")
        for (site, sentence), places in found.items()
    ]
