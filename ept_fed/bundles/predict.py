"""Calibrated probabilities for image files; each file gives one row, even if it cannot be read."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ept_fed.bundles.description import Description
from ept_fed.bundles.find_images import FoundImage
from ept_fed.bundles.model import CalibratedModel
from ept_fed.data.datasets.transforms import NORMALISE, build_evaluation_transforms
from ept_fed.data.decoding.dicom_file import DICOM_SUFFIXES, is_dicom, read_dicom
from ept_fed.data.decoding.image_file import UnreadableImageError, decode_image
from ept_fed.storage.files import write_csv

__all__ = ["PREDICTED", "ImagePrediction", "predict_images", "read_image", "write_predictions"]

PREDICTED = "predicted"
_SEPARATOR = "|"
_MAX_FILE_BYTES = 1 << 30


@dataclass(frozen=True)
class ImagePrediction:
    """The result for one image.

    Attributes:
        image: name of the image.
        status: `PREDICTED`, or the reason why the image was not predicted.
        predicted: the most probable class; for multi-label, all classes with a probability of at least 0.5. Empty if
            not predicted.
        probabilities: (C,), calibrated; empty if not predicted.
    """

    image: str
    status: str
    predicted: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()


def predict_images(
    model: CalibratedModel,
    description: Description,
    images: Iterable[FoundImage],
    *,
    batch_size: int = 32,
    on_image: Callable[[], None] = lambda: None,
) -> list[ImagePrediction]:
    """Return one result per image in the given order; an unreadable image gets a result with the reason.

    Args:
        model: model of the bundle that `description` describes.
        description: input, classes and task of the model.
        images: image files; they are read and resized one after the other, so that memory contains only one batch.
        batch_size: images per forward pass.
        on_image: called once per image.
    """
    transforms = build_evaluation_transforms(description.input.to_spec())
    rows: list[ImagePrediction] = []
    waiting: dict[int, Tensor] = {}
    for image in images:
        try:
            if image.reason is not None:
                raise UnreadableImageError(image.name, image.reason)
            waiting[len(rows)] = transforms({"image": read_image(image.name, image.path)}, end=NORMALISE)["image"]
            rows.append(ImagePrediction(image.name, PREDICTED))
        except UnreadableImageError as error:
            rows.append(ImagePrediction(image.name, error.reason))
        if len(waiting) == batch_size:
            _fill_in(rows, waiting, model, description)
        on_image()
    if waiting:
        _fill_in(rows, waiting, model, description)
    return rows


def read_image(name: str, path: Path) -> np.ndarray:
    """Return the image of one file as (H, W, 3) uint8 RGB; DICOM files are detected, Pillow reads all others.

    Raises:
        UnreadableImageError: with `name` and the reason.
    """
    try:
        if not path.is_file():
            raise UnreadableImageError(name, "is not a file" if path.exists() else "is missing")
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UnreadableImageError(name, f"cannot be read ({error.strerror})") from error
    if not content:
        raise UnreadableImageError(name, "is an empty file")
    if len(content) > _MAX_FILE_BYTES:
        raise UnreadableImageError(name, "is a file of more than 1 GiB")
    if is_dicom(content) or path.suffix.lower() in DICOM_SUFFIXES:
        return read_dicom(name, content)
    return decode_image(name, content)


def write_predictions(path: Path, rows: Iterable[ImagePrediction], classes: tuple[str, ...]) -> None:
    """Write a CSV with image, status, predicted and a column p[class] per class; p is empty if not predicted."""
    columns = ("image", "status", "predicted", *(f"p[{name}]" for name in classes))
    write_csv(path, [_to_row(row, classes) for row in rows], columns)


def _to_row(row: ImagePrediction, classes: tuple[str, ...]) -> dict[str, Any]:
    probabilities = row.probabilities or ("",) * len(classes)
    return {
        "image": row.image,
        "status": row.status,
        "predicted": _SEPARATOR.join(row.predicted),
        **{f"p[{name}]": p for name, p in zip(classes, probabilities, strict=True)},
    }


@torch.inference_mode()
def _fill_in(
    rows: list[ImagePrediction], waiting: dict[int, Tensor], model: CalibratedModel, description: Description
) -> None:
    """Predict one batch, write the results into its rows, and empty the batch."""
    pixels = torch.stack(list(waiting.values())).to(model.scale.device, torch.float32)
    _, probabilities = model(pixels)
    for index, row in zip(waiting, probabilities.double().cpu().numpy(), strict=True):
        name = rows[index].image
        if not np.isfinite(row).all():
            rows[index] = ImagePrediction(name, "gave no finite probabilities")
            continue
        top = np.flatnonzero(row >= 0.5) if model.multi_label else [int(row.argmax())]
        predicted = tuple(description.classes[label] for label in top)
        rows[index] = ImagePrediction(name, PREDICTED, predicted, tuple(round(float(p), 6) for p in row))
    waiting.clear()
