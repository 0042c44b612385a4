"""Calibrated probabilities for image files: one row each, whether it could be read or not."""

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
    """One image's row.

    Attributes:
        image: its name.
        status: `PREDICTED`, or why not.
        predicted: the most probable class; for multi-label, every class of at least 0.5. Empty if not predicted.
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
    """Predict on images, in their order; what cannot be read gets a row with the reason.

    Args:
        model: made from the bundle that `description` describes.
        description: input, classes and task.
        images: files; each is read, resized and forgotten, so that memory holds one batch.
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
    """Read one file as (H, W, 3) uint8 RGB: DICOM by its content, anything else as Pillow knows it.

    Raises:
        UnreadableImageError: under `name`, with the reason.
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
    """Write image, status, predicted and one p[class] column per class; p is empty where nothing was predicted."""
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
    """Run one batch, put its numbers into the rows that wait for it, and empty the batch."""
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
