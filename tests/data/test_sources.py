from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from ept_fed.config import (
    AnyDataSettings,
    DataSettings,
    ImageFolderSettings,
    ManifestSettings,
    MedMNISTSettings,
    PhantomSettings,
)
from ept_fed.data.datasets import prepare_data
from ept_fed.data.input_spec import InputSpec
from ept_fed.data.sources import SOURCES, open_catalog


@pytest.fixture
def settings(
    request: pytest.FixtureRequest, tmp_path: Path, write_hospital: Callable[..., ManifestSettings]
) -> DataSettings:
    if request.param == "manifest":
        return write_hospital(shots=2)
    if request.param == "phantoms":
        return PhantomSettings(phantom_sites=2, patients_per_class=6, shots=2)
    if request.param == "folder":
        for number in range(24):
            folder = tmp_path / "images" / "xy"[number % 2] / "ab"[number // 2 % 2]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, (20, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
        return ImageFolderSettings(root=tmp_path, shots=2)
    assert request.param == "medmnist", "give a new source settings here, so that the sweep covers it"
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = np.random.default_rng(0).integers(0, 256, (16, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(16) % 2)[:, None]
    np.savez(tmp_path / "small.npz", **arrays)
    return MedMNISTSettings(root=tmp_path, archive=Path("small.npz"), virtual_sites=2, shots=2)


def test_every_settings_class_has_a_source() -> None:
    union = get_args(AnyDataSettings)[0]
    assert {member.model_fields["source"].default for member in get_args(union)} == set(SOURCES)


@pytest.mark.parametrize("settings", sorted(SOURCES), indirect=True)
def test_every_source_lists_readable_images_with_valid_labels(settings: ManifestSettings) -> None:
    catalog = open_catalog(settings, seed=0)
    images = [record.image for record in catalog.records]
    assert len(images) == len(set(images)) > 0
    assert catalog.store.find_missing(images) == []
    assert all(0 <= label < len(catalog.classes) for record in catalog.records for label in record.labels)
    pixels = catalog.store.read(images[0])
    assert (pixels.dtype, pixels.ndim, pixels.shape[2]) == (np.uint8, 3, 3)
    assert open_catalog(settings, seed=0).records == catalog.records


@pytest.mark.parametrize("settings", sorted(SOURCES), indirect=True)
def test_every_source_prepares_two_sites(settings: ManifestSettings) -> None:
    data = prepare_data(settings, InputSpec(16, (0.5,) * 3, (0.5,) * 3, "bilinear"), seed=0)
    assert len(data.sites) == 2
    for site in data.sites.values():
        assert len(site.train) == 2 * len(data.classes)
        images, labels = next(site.test.batches(4))
        assert len(images) == len(labels) > 0
