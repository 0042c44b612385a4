"""The MedMNIST source: one .npz with the arrays {train,val,test}_{images,labels}."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from ept_fed.config.data import MedMNISTSettings
from ept_fed.data.decoding.image_store import ArrayImages
from ept_fed.data.records.records import ONE_SITE, Catalog, ImageRecord
from ept_fed.errors import InputRefusedError, Problem

__all__ = ["read_medmnist"]

_SPLITS = {"train": "train", "val": "validation", "test": "test"}
_PARTS = ("images", "labels")


def read_medmnist(settings: MedMNISTSettings) -> Catalog:
    """Read an archive into memory and keep its own splits.

    Images are uint8 (n, H, W) or (n, H, W, 3), of any size. Labels are (n, 1) class indices, or (n, C) values of 0
    and 1 for multi_label. The archive contains neither patients nor sites, so every image is its own group and is at
    `ONE_SITE` until `settings.partition` assigns a site. Classes are `settings.classes`, or "0", "1", …

    Raises:
        InputRefusedError: with all problems of the archive.
    """
    path = settings.root / settings.archive
    arrays = _load(path)
    problems = _check_shapes(path, arrays, settings.task)
    if problems:
        raise InputRefusedError(problems)
    labels = {split: _as_columns(arrays[f"{split}_labels"]) for split in _SPLITS}
    classes = settings.classes or _name_classes(labels, settings.task)
    problems = _check_labels(labels, classes, settings.task)
    if problems:
        raise InputRefusedError(problems)
    records = tuple(
        ImageRecord(
            image=f"{split}/{row}",
            labels=_to_indices(values, settings.task),
            site=ONE_SITE,
            group=f"{split}/{row}",
            split=name,
        )
        for split, name in _SPLITS.items()
        for row, values in enumerate(labels[split])
    )
    store = ArrayImages({split: arrays[f"{split}_images"] for split in _SPLITS})
    return Catalog(records, tuple(classes), settings.task, store)


def _load(path: Path) -> dict[str, np.ndarray]:
    keys = [f"{split}_{part}" for split in _SPLITS for part in _PARTS]
    try:
        opened = np.load(path, allow_pickle=False)
        if not isinstance(opened, np.lib.npyio.NpzFile):
            raise InputRefusedError([Problem("data.archive", str(path), "is a single array, not an .npz")])
        with opened as archive:
            missing = [key for key in keys if key not in archive]
            if missing:
                fix = f"lacks {', '.join(missing)}; it has {', '.join(archive.files) or 'nothing'}"
                raise InputRefusedError([Problem("data.archive", str(path), fix)])
            return {key: archive[key] for key in keys}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        fix = f"cannot be read as a MedMNIST .npz ({error}); download it again"
        raise InputRefusedError([Problem("data.archive", str(path), fix)]) from error


def _check_shapes(path: Path, arrays: dict[str, np.ndarray], task: str) -> list[Problem]:
    problems = []
    for split in _SPLITS:
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)):
            fix = f"{split}_images is {images.dtype} {images.shape}; need uint8 (n, H, W) or (n, H, W, 3)"
            problems.append(Problem("data.archive", str(path), fix))
        if images.ndim and labels.ndim and len(images) != len(labels):
            fix = f"{split} has {len(images)} images but {len(labels)} labels"
            problems.append(Problem("data.archive", str(path), fix))
        if labels.dtype.kind not in "iub" or labels.ndim not in (1, 2):
            fix = f"{split}_labels is {labels.dtype} {labels.shape}; need whole numbers (n, 1) or (n, C)"
            problems.append(Problem("data.archive", str(path), fix))
    if problems:
        return problems
    widths = {1 if (labels := arrays[f"{split}_labels"]).ndim == 1 else labels.shape[1] for split in _SPLITS}
    if len(widths) > 1:
        fix = f"the splits have labels of different widths: {sorted(widths)}"
        return [Problem("data.archive", str(path), fix)]
    width = widths.pop()
    if task == "single_label" and width != 1:
        fix = f"the archive has {width} label columns; set data.task=multi_label"
        return [Problem("data.task", task, fix)]
    if task == "multi_label" and width == 1:
        return [Problem("data.task", task, "the archive has one class per image; set data.task=single_label")]
    return []


def _name_classes(labels: dict[str, np.ndarray], task: str) -> tuple[str, ...]:
    if task == "multi_label":
        count = labels["train"].shape[1]
    else:
        count = 1 + max((int(values.max()) for values in labels.values() if values.size), default=0)
    return tuple(str(number) for number in range(count))


def _check_labels(labels: dict[str, np.ndarray], classes: tuple[str, ...], task: str) -> list[Problem]:
    if task == "multi_label" and labels["train"].shape[1] != len(classes):
        fix = f"the archive has {labels['train'].shape[1]} label columns; name as many classes"
        return [Problem("data.classes", list(classes), fix)]
    allowed = (0, 1) if task == "multi_label" else tuple(range(len(classes)))
    problems = []
    for split, values in labels.items():
        outside = np.unique(values[~np.isin(values, allowed)])
        if outside.size:
            fix = f"{split}_labels holds {outside[:5].tolist()}, not only {allowed[0]} to {allowed[-1]}"
            problems.append(Problem("data.classes", list(classes), fix))
    return problems


def _as_columns(labels: np.ndarray) -> np.ndarray:
    return labels[:, None] if labels.ndim == 1 else labels


def _to_indices(values: np.ndarray, task: str) -> tuple[int, ...]:
    if task == "multi_label":
        return tuple(int(index) for index in np.flatnonzero(values))
    return (int(values[0]),)
