"""Validators for data settings that do not fit together and for paths that do not exist."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ept_fed.config.data import (
    AnyDataSettings,
    DicomColumns,
    DicomSettings,
    ImageFolderSettings,
    ISIC2018Settings,
    ManifestColumns,
    ManifestSettings,
    MedFMCSettings,
    MedMNISTSettings,
    PhantomSettings,
    SharedDataSettings,
)
from ept_fed.config.experiment import Experiment
from ept_fed.config.partition import PartitionSettings
from ept_fed.errors import Problem

__all__ = ["check_exists", "validate_data", "validate_splits"]


def validate_data(experiment: Experiment) -> list[Problem]:
    """Check that the data settings fit together and that their paths exist; return the problems."""
    data = experiment.data
    found = validate_splits(data) + _check_partition(data.partition)
    check = _CHECKS.get(data.source)
    return found + check(data) if check else found


def validate_splits(data: SharedDataSettings) -> list[Problem]:
    """Check the data settings that a consortium decides: classes, shares of the splits, augmentation."""
    found = _check_classes(data.classes, data.task)
    if data.test_fraction + data.validation_fraction >= 1.0:
        total = f"{data.test_fraction} + {data.validation_fraction}"
        found.append(Problem("data.test_fraction", total, "leave no images for training; lower test or validation"))
    if data.test_shots is not None and data.task == "multi_label":
        fix = "draws test images by class, and would leave out all images without a label; set it to null"
        found.append(Problem("data.test_shots", data.test_shots, fix))
    if data.augmentation.crop_scale[0] > data.augmentation.crop_scale[1]:
        found.append(Problem("data.augmentation.crop_scale", data.augmentation.crop_scale, "write the smaller first"))
    if data.augmentation.views > 1 and data.augmentation.crop_scale == (1.0, 1.0) and not data.augmentation.flip:
        fix = "are all equal without crop and flip; set it to 1, or set data.augmentation.flip=true"
        found.append(Problem("data.augmentation.views", data.augmentation.views, fix))
    return found


def check_exists(field: str, path: Path) -> list[Problem]:
    """Return a problem if `path` does not exist."""
    try:
        there = path.exists()
    except (OSError, ValueError):
        there = False
    return [] if there else [Problem(field, str(path), "no such file or folder; correct the path")]


def _check_classes(classes: tuple[str, ...] | None, task: str) -> list[Problem]:
    if classes is None:
        return []
    if len(set(classes)) != len(classes):
        return [Problem("data.classes", list(classes), "name each class once")]
    if len(classes) < 2 and task == "single_label":
        return [Problem("data.classes", list(classes), "single_label requires at least two classes")]
    return []


def _check_partition(partition: PartitionSettings) -> list[Problem]:
    if partition.feature_shift is None:
        return []
    ranges = partition.feature_shift.model_dump()
    return [
        Problem(f"data.partition.feature_shift.{name}", list(span), "write the smaller first")
        for name, span in ranges.items()
        if span[0] > span[1]
    ]


def _check_image_folder(data: ImageFolderSettings) -> list[Problem]:
    found = check_exists("data.images", data.root / data.images)
    if data.task != "single_label":
        found.append(Problem("data.task", data.task, "a folder gives one class per image; use a manifest for several"))
    return found


def _check_phantoms(data: PhantomSettings) -> list[Problem]:
    if data.task != "single_label":
        return [Problem("data.task", data.task, "a phantom shows one structure; use single_label")]
    return []


def _check_manifest(data: ManifestSettings) -> list[Problem]:
    found = _check_label_columns(data, data.columns) + _check_site_column(data, data.columns)
    if "{image}" not in data.image_name:
        found.append(Problem("data.image_name", data.image_name, "must contain {image}"))
    found += check_exists("data.manifest", data.root / data.manifest)
    return found + check_exists("data.images", data.root / data.images)


def _check_medmnist(data: MedMNISTSettings) -> list[Problem]:
    return check_exists("data.archive", data.root / data.archive)


def _check_medfmc(data: MedFMCSettings) -> list[Problem]:
    found = []
    task = "single_label" if data.dataset == "colon" else "multi_label"
    if data.task != task:
        found.append(Problem("data.task", data.task, f"data.dataset = '{data.dataset}' is {task}; set it to that"))
    if data.sampling is not None and data.shots is not None:
        fix = f"data.sampling = '{data.sampling}' is a K-shot sample already; set shots to null"
        found.append(Problem("data.shots", data.shots, fix))
    if data.sampling is not None and data.test_list is None:
        found.append(Problem("data.test_list", None, "a published sampling requires a test list; set it"))
    if data.group_pattern is not None:
        found += _check_pattern(data.group_pattern)
    found += check_exists("data.lists", data.root / data.lists)
    return found + check_exists("data.images", data.root / data.images)


def _check_isic2018(data: ISIC2018Settings) -> list[Problem]:
    found = check_exists("data.images", data.root / data.images)
    if data.task != "single_label":
        found.append(Problem("data.task", data.task, "ISIC 2018 has one diagnosis per image; use single_label"))
    if len(set(data.parts)) != len(data.parts) or (len(data.parts) > 1 and not {"training", "test"} <= {*data.parts}):
        found.append(
            Problem("data.parts", list(data.parts), "list one part, or training, test and (optional) validation")
        )
    return found


def _check_dicom(data: DicomSettings) -> list[Problem]:
    found = _check_label_columns(data, data.columns)
    found += check_exists("data.labels", data.root / data.labels)
    found += check_exists("data.images", data.root / data.images)
    if data.patient_key is not None:
        found += check_exists("data.patient_key", data.root / data.patient_key)
    return found


def _check_label_columns(data: AnyDataSettings, columns: ManifestColumns | DicomColumns) -> list[Problem]:
    found = []
    if (columns.label is None) == (columns.labels is None):
        value = {"label": columns.label, "labels": columns.labels}
        found.append(Problem("data.columns", value, "set either label or labels"))
    if data.task == "multi_label" and columns.labels is None:
        found.append(Problem("data.columns.labels", None, "multi_label requires one 0/1 column per class; list them"))
    return found


def _check_site_column(data: AnyDataSettings, columns: ManifestColumns) -> list[Problem]:
    if columns.site is None and data.partition.kind == "sites":
        fix = "name the site column, or set data.partition, e.g. {kind: iid, sites: 4}"
        return [Problem("data.columns.site", None, fix)]
    return []


def _check_pattern(pattern: str) -> list[Problem]:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        return [Problem("data.group_pattern", pattern, f"is not a regular expression ({error})")]
    return [] if groups else [Problem("data.group_pattern", pattern, "needs (parentheses) around the patient")]


_CHECKS: Mapping[str, Callable[[Any], list[Problem]]] = {
    "manifest": _check_manifest,
    "folder": _check_image_folder,
    "medmnist": _check_medmnist,
    "medfmc": _check_medfmc,
    "isic2018": _check_isic2018,
    "dicom": _check_dicom,
    "phantoms": _check_phantoms,
}
