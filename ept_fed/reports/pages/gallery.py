"""The most confident errors: selection of the images, and their pictures, which appear only on the site's own page."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ept_fed.reports.run.read_predictions import PredictionTable

__all__ = ["ConfidentError", "GalleryItem", "most_confident_errors"]


@dataclass(frozen=True)
class ConfidentError:
    """A wrongly classified test image, with the confidence of the model."""

    image: str
    true: str
    predicted: str
    probability: float


@dataclass(frozen=True)
class GalleryItem:
    """A wrongly classified test image with its picture.

    Attributes:
        image: name of the image.
        png: the picture as PNG bytes, optionally next to its patch-wise scaling map.
        true: name of the true class.
        predicted: name of the predicted class.
        probability: probability of the predicted class.
        scaling: minimum and maximum of the map's factors; None without a map.
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
        """The picture as a data URI, so that the page loads no file."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


def most_confident_errors(
    predictions: PredictionTable, classes: Sequence[str], n: int, setting: str
) -> tuple[ConfidentError, ...]:
    """Return up to n single-label errors in order of decreasing confidence; ties keep the order of the table.

    Args:
        predictions: a site's test images, with class indices as labels (n,).
        classes: names of the classes.
        n: maximum number of errors.
        setting: setting whose predictions are used.

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
