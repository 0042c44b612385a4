from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from ept_fed.config.data import (
    AnyDataSettings,
    DataSettings,
    DicomColumns,
    DicomSettings,
    ImageFolderSettings,
    ISIC2018Settings,
    ManifestSettings,
    MedFMCSettings,
    MedMNISTSettings,
    PhantomSettings,
)
from ept_fed.config.partition import IIDPartition
from ept_fed.data.datasets.input_spec import InputSpec
from ept_fed.data.datasets.prepare import prepare_data
from ept_fed.data.sources.registry import SOURCES, open_catalog
from tests.needs import PYDICOM

EACH_SOURCE = [pytest.param(name, marks=PYDICOM.mark if name == "dicom" else ()) for name in sorted(SOURCES)]


def _write_image(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def _write_folder(root: Path) -> DataSettings:
    for number in range(24):
        _write_image(root / "images" / "xy"[number % 2] / "ab"[number // 2 % 2] / f"{number}.png", number)
    return ImageFolderSettings(root=root, shots=2)


def _write_medmnist(root: Path) -> DataSettings:
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = np.random.default_rng(0).integers(0, 256, (16, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(16) % 2)[:, None]
    np.savez(root / "small.npz", **arrays)
    return MedMNISTSettings(root=root, archive=Path("small.npz"), partition=IIDPartition(sites=2), shots=2)


def _write_medfmc(root: Path) -> DataSettings:
    for name, numbers in (("trainval.txt", range(16)), ("test_WithLabel.txt", range(16, 24))):
        for number in numbers:
            _write_image(root / "images" / f"slide 1 p{number}.png", number)
        (root / name).write_text("".join(f"slide 1 p{number}.png {number % 2}\n" for number in numbers))
    return MedFMCSettings(root=root, partition=IIDPartition(sites=2), shots=2)


def _write_isic2018(root: Path) -> DataSettings:
    rows = ["image,MEL,NV,BCC,AKIEC,BKL,DF,VASC"]
    for number in range(84):
        _write_image(root / "ISIC2018_Task3_Training_Input" / f"ISIC_{number:07d}.jpg", number)
        rows.append(f"ISIC_{number:07d}," + ",".join(str(float(column == number % 7)) for column in range(7)))
    (root / "ISIC2018_Task3_Training_GroundTruth.csv").write_text("\n".join(rows) + "\n")
    return ISIC2018Settings(root=root, groupings=False, partition=IIDPartition(sites=2), shots=2)


def _write_dicom(root: Path, encode_dicom: Callable[..., bytes]) -> DataSettings:
    rows = ["SOPInstanceUID,label,site"]
    (root / "images").mkdir()
    for number in range(48):
        pixels = np.random.default_rng(number).integers(0, 4096, (20, 30)).astype(np.uint16)
        content = encode_dicom(pixels, SOPInstanceUID=f"1.2.{number}", PatientID=f"p{number // 4}")
        (root / "images" / f"IM{number:04d}").write_bytes(content)
        rows.append(f"1.2.{number},{'ab'[number // 4 % 2]},{'xy'[number // 8 % 2]}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    return DicomSettings(root=root, columns=DicomColumns(site="site"), shots=2)


@pytest.fixture
def settings(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    write_hospital: Callable[..., ManifestSettings],
    encode_dicom: Callable[..., bytes],
) -> DataSettings:
    """Settings of each source, with two sites written to disk; a new source needs an entry here to be tested."""
    return {
        "manifest": lambda: write_hospital(shots=2),
        "folder": lambda: _write_folder(tmp_path),
        "medmnist": lambda: _write_medmnist(tmp_path),
        "medfmc": lambda: _write_medfmc(tmp_path),
        "isic2018": lambda: _write_isic2018(tmp_path),
        "dicom": lambda: _write_dicom(tmp_path, encode_dicom),
        "phantoms": lambda: PhantomSettings(phantom_sites=2, patients_per_class=6, shots=2),
    }[request.param]()


def test_every_settings_class_has_a_source() -> None:
    union = get_args(AnyDataSettings)[0]
    assert {member.model_fields["source"].default for member in get_args(union)} == set(SOURCES)


@pytest.mark.parametrize("settings", EACH_SOURCE, indirect=True)
def test_every_source_lists_readable_images_with_valid_labels(settings: ManifestSettings) -> None:
    catalog = open_catalog(settings, seed=0)
    images = [record.image for record in catalog.records]
    assert len(images) == len(set(images)) > 0
    assert catalog.store.find_missing(images) == []
    assert all(0 <= label < len(catalog.classes) for record in catalog.records for label in record.labels)
    pixels = catalog.store.read(images[0])
    assert (pixels.dtype, pixels.ndim, pixels.shape[2]) == (np.uint8, 3, 3)
    assert catalog.store.mode(images[0]) not in ("", "unknown")
    assert open_catalog(settings, seed=0).records == catalog.records


@pytest.mark.parametrize("settings", EACH_SOURCE, indirect=True)
def test_every_source_prepares_two_sites(settings: ManifestSettings) -> None:
    data = prepare_data(settings, InputSpec(16, (0.5,) * 3, (0.5,) * 3, "bilinear"), seed=0)
    assert len(data.sites) == 2
    for site in data.sites.values():
        assert len(site.train) == 2 * len(data.classes)
        images, labels = next(site.test.batches(4))
        assert len(images) == len(labels) > 0
