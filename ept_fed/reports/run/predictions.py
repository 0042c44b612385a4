"""The rows of predictions.csv: label, prediction and probabilities of each image in each setting."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ept_fed.data.records.records import ImageRecord
from ept_fed.evaluation.metrics import Array

__all__ = ["SUBGROUP_PREFIX", "list_predictions", "list_subgroups", "prediction_columns"]

SUBGROUP_PREFIX = "subgroup:"
_SEPARATOR = "|"


def prediction_columns(classes: Sequence[str], subgroups: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the column names of predictions.csv for the given classes and subgroups."""
    scores, attributes = (f"p[{name}]" for name in classes), (f"{SUBGROUP_PREFIX}{name}" for name in subgroups)
    return ("split", "image", "group", "label", "setting", "predicted", *scores, *attributes)


def list_subgroups(records: Iterable[ImageRecord]) -> tuple[str, ...]:
    """Return the sorted names of all subgroups for which at least one image has a value."""
    return tuple(sorted({name for record in records for name, _ in record.attributes}))


def list_predictions(
    images: Any, split: str, setting: str, probabilities: Array, subgroups: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Return the rows for the images of a data set in one setting.

    Args:
        images: a `CachedDataset`; its records are in the order of the rows of `probabilities`.
        split: validation or test.
        setting: name of the setting, e.g. local, federated, centralised.
        probabilities: predicted probabilities (n, C).
        subgroups: names of the subgroup columns; an image without a value gets an empty cell.
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
