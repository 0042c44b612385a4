"""The registry of sources: a new one is a settings class in `ept_fed.config`, a file here and a line
below."""

from collections.abc import Callable
from typing import Any

from ept_fed.config import AnyDataSettings
from ept_fed.data.image_folder import read_image_folder
from ept_fed.data.manifest import read_manifest
from ept_fed.data.medmnist import read_medmnist
from ept_fed.data.phantoms import generate_phantoms
from ept_fed.data.records import Catalog

__all__ = ["SOURCES", "open_catalog"]

# Called with the settings of that source and the run's seed, which only generated data needs.
SOURCES: dict[str, Callable[[Any, int], Catalog]] = {
    "manifest": lambda settings, _seed: read_manifest(settings),
    "folder": lambda settings, _seed: read_image_folder(settings),
    "medmnist": lambda settings, _seed: read_medmnist(settings),
    "phantoms": generate_phantoms,
}


def open_catalog(settings: AnyDataSettings, seed: int) -> Catalog:
    """List the images of the source that `settings.source` names; no image is decoded.

    Raises:
        InputRefusedError: with everything wrong with the source.
    """
    return SOURCES[settings.source](settings, seed)
