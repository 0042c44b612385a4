"""One row per image and setting: what was there, what was predicted, and with which probabilities."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ept_fed.evaluation.metrics import Array

__all__ = ["list_predictions", "prediction_columns"]

_SEPARATOR = "|"


def prediction_columns(classes: Sequence[str]) -> tuple[str, ...]:
    """Return the columns of predictions.csv for these classes."""
    return ("split", "image", "group", "label", "setting", "predicted", *(f"p[{name}]" for name in classes))


def list_predictions(images: Any, split: str, setting: str, probabilities: Array) -> list[dict[str, Any]]:
    """Return rows for a data set's images under one setting.

    Args:
        images: a `CachedDataset`, whose records and rows of `probabilities` correspond.
        split: validation or test.
        setting: local, federated, centralised.
        probabilities: (n, C).
    """
    rows = []
    for record, row in zip(images.records, probabilities, strict=True):
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
            }
        )
    return rows
