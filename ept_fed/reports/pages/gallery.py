"""The most confident errors: which images to fetch, and how they look on the page of the site that they never leave."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ept_fed.reports.run.read_predictions import PredictionTable

__all__ = ["ConfidentError", "GalleryItem", "most_confident_errors"]


@dataclass(frozen=True)
class ConfidentError:
    """A test image on which the model was wrong, and how sure it was."""

    image: str
    true: str
    predicted: str
    probability: float


@dataclass(frozen=True)
class GalleryItem:
    """The same with the picture.

    Attributes:
        image: name.
        png: the picture as PNG bytes, e.g. with the patch-wise scaling map beside it.
        true: name of the true class.
        predicted: name of the class that the model took it for.
        probability: of the predicted class.
        scaling: least and most of the map's factors; None without a map.
    """

    image: str
    png: bytes
    true: str
    predicted: str
    probability: float
    scaling: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not self.png.startswith(b"\x89PNG\r\n\x1a\n"):
            raise ValueError(f"the picture of '{self.image}' is not a PNG")

    @property
    def source(self) -> str:
        """The picture as a data URI: the page loads nothing."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


def most_confident_errors(
    predictions: PredictionTable, classes: Sequence[str], n: int, setting: str = "federated"
) -> tuple[ConfidentError, ...]:
    """Return up to n single-label errors, the surest first; equal ones in the order of the table.

    Args:
        predictions: a site's test images, labels (n,) class indices.
        classes: names.
        n: at most this many.
        setting: whose errors.

    Raises:
        ValueError: for multi-label predictions, where an image is not simply right or wrong.
    """
    if predictions.labels.ndim != 1:
        raise ValueError("multi-label images are not simply right or wrong; choose them by class instead")
    scores = predictions.scores[setting]
    if not len(scores):
        return ()
    taken, sure = scores.argmax(axis=1), scores.max(axis=1)
    order = np.argsort(-sure, kind="stable")
    wrong = [int(i) for i in order if taken[i] != predictions.labels[i]]
    return tuple(
        ConfidentError(predictions.images[i], classes[predictions.labels[i]], classes[taken[i]], float(sure[i]))
        for i in wrong[:n]
    )
