"""ISIC 2018 task 3, with test files in the form that the challenge publishes."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ept_fed.config.data import ISIC2018Settings
from ept_fed.data.sources.isic2018 import ISIC2018_CLASSES, read_isic2018
from ept_fed.errors import InputRefusedError

HEADER = "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC"


@pytest.fixture
def publish(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes one part: ground truth, a lesion for each pair of images, and the images."""

    def write(part: str = "Training", first: int = 24306, count: int = 14, *, folder: bool = True) -> Path:
        stem = f"ISIC2018_Task3_{part}"
        truth, lesions = [HEADER], ["image,lesion_id,diagnosis_confirm_type"]
        (tmp_path / f"{stem}_Input").mkdir()
        for number in range(count):
            name = f"ISIC_{first + number:07d}"
            truth.append(f"{name}," + ",".join("1.0" if c == number % 7 else "0.0" for c in range(7)))
            lesions.append(f"{name},HAM_{number // 2:07d},histopathology")
            pixels = np.random.default_rng(first + number).integers(0, 256, (9, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{stem}_Input" / f"{name}.jpg")
        where = tmp_path / f"{stem}_GroundTruth" if folder else tmp_path
        where.mkdir(exist_ok=True)
        (where / f"{stem}_GroundTruth.csv").write_text("\n".join(truth) + "\n")
        if part == "Training":
            (tmp_path / f"{stem}_LesionGroupings.csv").write_text("\n".join(lesions) + "\n")
        return tmp_path

    return write


def refuse(settings: ISIC2018Settings) -> dict[str, str]:
    with pytest.raises(InputRefusedError) as refusal:
        read_isic2018(settings)
    return {problem.field: str(problem) for problem in refusal.value.problems}


def test_one_part_is_read_back_exactly(publish: Callable[..., Path]) -> None:
    catalog = read_isic2018(ISIC2018Settings(root=publish()))
    assert catalog.classes == ISIC2018_CLASSES
    first, second, third = catalog.records[:3]
    assert first.image == "ISIC2018_Task3_Training_Input/ISIC_0024306.jpg"
    assert (first.labels, second.labels, third.labels) == ((0,), (1,), (2,))
    assert (first.group, second.group, third.group) == ("HAM_0000000", "HAM_0000000", "HAM_0000001")
    assert {record.split for record in catalog.records} == {None}
    assert catalog.store.read(first.image).shape == (9, 12, 3)


def test_each_part_is_its_own_split(publish: Callable[..., Path]) -> None:
    publish()
    publish("Validation", 34321, 7, folder=False)
    root = publish("Test", 34524, 7)
    catalog = read_isic2018(ISIC2018Settings(root=root, parts=("training", "validation", "test")))
    splits = [record.split for record in catalog.records]
    assert splits == ["train"] * 14 + ["validation"] * 7 + ["test"] * 7
    assert catalog.records[-1].group == catalog.records[-1].image


def test_the_images_may_stay_in_their_zip(publish: Callable[..., Path]) -> None:
    root = publish()
    with zipfile.ZipFile(root / "ISIC2018_Task3_Training_Input.zip", "w") as archive:
        for path in (root / "ISIC2018_Task3_Training_Input").iterdir():
            archive.write(path, path.relative_to(root).as_posix())
    catalog = read_isic2018(ISIC2018Settings(root=root, images=Path("ISIC2018_Task3_Training_Input.zip")))
    assert catalog.store.find_missing([record.image for record in catalog.records]) == []


def test_reordered_classes_and_extra_columns_are_accepted(publish: Callable[..., Path]) -> None:
    root = publish()
    path = root / "ISIC2018_Task3_Training_GroundTruth" / "ISIC2018_Task3_Training_GroundTruth.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0] + ",score_weight", *(line + ",1.0" for line in lines[1:])]))
    classes = tuple(sorted(ISIC2018_CLASSES))
    catalog = read_isic2018(ISIC2018Settings(root=root, classes=classes))
    assert classes[catalog.records[0].labels[0]] == "MEL"


def test_all_problems_are_reported_together(publish: Callable[..., Path]) -> None:
    root = publish()
    path = root / "ISIC2018_Task3_Training_GroundTruth" / "ISIC2018_Task3_Training_GroundTruth.csv"
    path.write_text(path.read_text() + "ISIC_0099999,1,1,0,0,0,0,0\nISIC_0024306,1,0,0,0,0,0,0\n")
    found = refuse(ISIC2018Settings(root=root, classes=("MEL", "NV")))
    assert set(found) == {"data.classes", "data.parts", "data.groupings", "data.images"}
    assert "no lesion" in found["data.groupings"]
    assert "ISIC_0099999" in found["data.images"]


def test_missing_files_are_named(tmp_path: Path) -> None:
    found = refuse(ISIC2018Settings(root=tmp_path))
    assert "ISIC2018_Task3_Training_GroundTruth.csv" in found["data.parts"]
    assert "LesionGroupings.csv" in found["data.groupings"]


def test_without_groupings_every_image_is_its_own_group(publish: Callable[..., Path]) -> None:
    catalog = read_isic2018(ISIC2018Settings(root=publish(), groupings=False))
    assert len({record.group for record in catalog.records}) == 14
