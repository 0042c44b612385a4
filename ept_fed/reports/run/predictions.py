"""One row per image and setting: what was there, what was predicted, and with which probabilities."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ept_fed.data.records.records import ImageRecord
from ept_fed.evaluation.metrics import Array

__all__ = ["SUBGROUP_PREFIX", "list_predictions", "list_subgroups", "prediction_columns"]

SUBGROUP_PREFIX = "subgroup:"
_SEPARATOR = "|"


def prediction_columns(classes: Sequence[str], subgroups: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the columns of predictions.csv for these classes and subgroups."""
    scores, attributes = (f"p[{name}]" for name in classes), (f"{SUBGROUP_PREFIX}{name}" for name in subgroups)
    return ("split", "image", "group", "label", "setting", "predicted", *scores, *attributes)


def list_subgroups(records: Iterable[ImageRecord]) -> tuple[str, ...]:
    """Return the names of the subgroups that any of the images states, sorted."""
    return tuple(sorted({name for record in records for name, _ in record.attributes}))


def list_predictions(
    images: Any, split: str, setting: str, probabilities: Array, subgroups: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Return rows for a data set's images under one setting.

    Args:
        images: a `CachedDataset`, whose records and rows of `probabilities` correspond.
        split: validation or test.
        setting: local, federated, centralised.
        probabilities: (n, C).
        subgroups: names of the subgroup columns; empty where an image does not state one.
    """
    rows = []
    for record, row in zip(images.records, probabilities, strict=True):
        stated = dict(record.attributes)
        top = np.flatnonzero(row >= 0.5) if images.task == "multi_label" else [int(row.argmax())]
        rows.append(
            {
                "split": split,
                "image": record.image,
                "group": record.group,
                "label": _SEPARATOR.join(images.classes[label] for label in record.labels),
                "setting": setting,
                "predicted": _SEPARATOR.join(images.classes[label] for label in top),
                **{f"p[{name}]": round(float(p), 9) for name, p in zip(images.classes, row, strict=True)},
                **{f"{SUBGROUP_PREFIX}{name}": stated.get(name, "") for name in subgroups},
            }
        )
    return rows
