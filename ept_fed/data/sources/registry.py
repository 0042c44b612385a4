"""The registry of sources.

A new source consists of a settings class in `ept_fed.config.data`, a file in this folder and a line in `SOURCES`.
"""

from collections.abc import Callable
from typing import Any

from ept_fed.config.data import AnyDataSettings
from ept_fed.data.records.records import Catalog
from ept_fed.data.sources.catalog import describe_straddling
from ept_fed.data.sources.dicom_folder import read_dicom_folder
from ept_fed.data.sources.image_folder import read_image_folder
from ept_fed.data.sources.isic2018 import read_isic2018
from ept_fed.data.sources.manifest import read_manifest
from ept_fed.data.sources.medfmc import read_medfmc
from ept_fed.data.sources.medmnist import read_medmnist
from ept_fed.data.sources.phantoms import generate_phantoms
from ept_fed.errors import InputRefusedError

__all__ = ["SOURCES", "list_catalog", "open_catalog"]

# Each function is called with the settings of its source and the run's seed, which only generated data needs.
SOURCES: dict[str, Callable[[Any, int], Catalog]] = {
    "manifest": lambda settings, _seed: read_manifest(settings),
    "folder": lambda settings, _seed: read_image_folder(settings),
    "medmnist": lambda settings, _seed: read_medmnist(settings),
    "medfmc": lambda settings, _seed: read_medfmc(settings),
    "isic2018": lambda settings, _seed: read_isic2018(settings),
    "dicom": lambda settings, _seed: read_dicom_folder(settings),
    "phantoms": generate_phantoms,
}


def list_catalog(settings: AnyDataSettings, seed: int) -> Catalog:
    """List the images of the source `settings.source` without decoding them.

    Groups with images in more than one split are accepted here.

    Raises:
        InputRefusedError: with all problems of the source.
    """
    return SOURCES[settings.source](settings, seed)


def open_catalog(settings: AnyDataSettings, seed: int) -> Catalog:
    """List the images of a source for training; see `list_catalog`.

    Raises:
        InputRefusedError: with all problems of the source, or with the groups that have images in more than one split.
    """
    catalog = list_catalog(settings, seed)
    problems = describe_straddling(catalog.records)
    if problems:
        raise InputRefusedError(problems)
    return catalog
