import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ept_fed.config import ManifestColumns, ManifestSettings
from ept_fed.data.records import ImageRecord


@pytest.fixture
def make_records() -> Callable[..., list[ImageRecord]]:
    """Records from (group, label, site, split) rows, with unique image names."""

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
    """A manifest of two sites, two classes and twelve patients each with two images, and its settings."""

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
