import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ept_fed.config.data import ManifestColumns, ManifestSettings
from ept_fed.data.records.records import ImageRecord
from ept_fed.data.sources.phantoms import PhantomImages
from tests.conftest import draw_phantom


@pytest.fixture(autouse=True)
def _phantoms_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw phantoms as the program does, and not once for all tests."""
    monkeypatch.setattr(PhantomImages, "read", draw_phantom)


@pytest.fixture
def make_records() -> Callable[..., list[ImageRecord]]:
    """Return a function that makes records with unique image names from (group, label, site, split) rows."""

    def make(rows: Sequence[tuple[str, int, str, str | None]]) -> list[ImageRecord]:
        return [
            ImageRecord(f"image-{number:04d}", (label,), site, group, split)
            for number, (group, label, site, split) in enumerate(rows)
        ]

    return make


@pytest.fixture
def encode_image() -> Callable[..., bytes]:
    def encode(array: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
        file = io.BytesIO()
        Image.fromarray(array).save(file, kind, **options)
        return file.getvalue()

    return encode


@pytest.fixture
def write_hospital(tmp_path: Path, encode_image: Callable[..., bytes]) -> Callable[..., ManifestSettings]:
    """Return a function that writes a manifest and its images, and returns the settings.

    Two sites and two classes; twelve patients in each combination; two images per patient.
    """

    def write(**settings: object) -> ManifestSettings:
        (tmp_path / "images").mkdir()
        rng = np.random.default_rng(0)
        lines = ["image,label,site,patient"]
        for patient in range(48):
            for view in range(2):
                name = f"p{patient:02d}-{view}.png"
                pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
                (tmp_path / "images" / name).write_bytes(encode_image(pixels))
                lines.append(f"{name},{'ab'[patient % 2]},{'xy'[patient // 2 % 2]},patient-{patient}")
        (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
        chosen: dict[str, object] = {
            "root": tmp_path,
            "columns": ManifestColumns(group="patient"),
            "shots": 3,
        }
        return ManifestSettings.model_validate(chosen | settings)

    return write


@pytest.fixture
def encode_dicom() -> Callable[..., bytes]:
    """Return a function that encodes pixels as a DICOM file.

    A keyword sets an attribute; the value None deletes it.
    """

    def build(pixels: np.ndarray, syntax: str = "1.2.840.10008.1.2.1", **attributes: Any) -> bytes:
        from pydicom.dataset import FileDataset, FileMetaDataset
        from pydicom.uid import UID, SecondaryCaptureImageStorage

        meta = FileMetaDataset()
        meta.TransferSyntaxUID = UID(syntax)
        meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
        meta.MediaStorageSOPInstanceUID = UID("1.2.3")
        dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        dataset.PatientName = "Secret^Person"
        bits = 8 * pixels.itemsize
        plain = {
            "Rows": pixels.shape[0],
            "Columns": pixels.shape[1],
            "SamplesPerPixel": 3 if pixels.ndim == 3 else 1,
            "PhotometricInterpretation": "RGB" if pixels.ndim == 3 else "MONOCHROME2",
            "BitsAllocated": bits,
            "BitsStored": bits,
            "HighBit": bits - 1,
            "PixelRepresentation": int(pixels.dtype.kind == "i"),
            "PixelData": pixels.tobytes(),
        } | ({"PlanarConfiguration": 0} if pixels.ndim == 3 else {})
        for name, value in (plain | attributes).items():
            if value is not None:
                setattr(dataset, name, value)
        file = io.BytesIO()
        dataset.save_as(file, enforce_file_format=True)
        return file.getvalue()

    return build
