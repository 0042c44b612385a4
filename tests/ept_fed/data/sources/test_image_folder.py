import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ept_fed.config.data import ImageFolderSettings
from ept_fed.data.sources.image_folder import read_image_folder
from ept_fed.errors import InputRefusedError


@pytest.fixture
def place(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes small images with the given names below tmp_path/images."""

    def put(*names: str) -> Path:
        for name in names:
            path = tmp_path / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".png":
                Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
            else:
                path.write_text("no image")
        return tmp_path

    return put


def refuse(settings: ImageFolderSettings) -> str:
    with pytest.raises(InputRefusedError) as refusal:
        read_image_folder(settings)
    return str(refusal.value)


def test_folders_name_site_class_and_group(place: Callable[..., Path]) -> None:
    root = place(
        "north/benign/p1/a.png", "north/benign/p1/b.png", "south/malignant/p1/a.png", "north/malignant/p2/a.png"
    )
    catalog = read_image_folder(ImageFolderSettings(root=root, levels="site/class/group"))
    assert catalog.classes == ("benign", "malignant")
    found = [(record.site, record.labels, record.group) for record in catalog.records]
    assert found == [
        ("north", (0,), "north/p1"),
        ("north", (0,), "north/p1"),
        ("north", (1,), "north/p2"),
        ("south", (1,), "south/p1"),
    ]


def test_a_patient_in_two_class_folders_is_one_group(place: Callable[..., Path]) -> None:
    catalog = read_image_folder(ImageFolderSettings(root=place("a/p1/1.png", "b/p1/2.png"), levels="class/group"))
    assert {record.group for record in catalog.records} == {"p1"}


def test_without_groups_every_image_is_its_own_group(place: Callable[..., Path]) -> None:
    catalog = read_image_folder(ImageFolderSettings(root=place("a/1.png", "a/2.png", "b/1.png"), levels="class"))
    assert len({record.group for record in catalog.records}) == 3


def test_a_zip_is_read_as_its_folder(place: Callable[..., Path], tmp_path: Path) -> None:
    root = place("north/a/1.png", "south/b/2.png")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in sorted((root / "images").rglob("*.png")):
            archive.write(path, path.relative_to(root / "images").as_posix())
    zipped = read_image_folder(ImageFolderSettings(root=root, images=Path("images.zip")))
    assert zipped.records == read_image_folder(ImageFolderSettings(root=root)).records
    assert zipped.store.read("north/a/1.png").shape == (8, 8, 3)


def test_a_single_outer_folder_is_skipped(place: Callable[..., Path]) -> None:
    root = place("archive/a/1.png", "archive/b/2.png")
    catalog = read_image_folder(ImageFolderSettings(root=root, levels="class"))
    assert (catalog.classes, [record.image for record in catalog.records]) == (
        ("a", "b"),
        ["archive/a/1.png", "archive/b/2.png"],
    )
    place("other/a/1.png")
    assert "are not at class/IMAGE" in refuse(ImageFolderSettings(root=root, levels="class"))


def test_files_that_are_not_images_are_ignored(place: Callable[..., Path]) -> None:
    root = place("x/a/1.png", "x/b/2.png", "x/a/notes.txt", "x/a/.hidden.png", "__MACOSX/x/1.png", "Thumbs.db")
    assert len(read_image_folder(ImageFolderSettings(root=root)).records) == 2


def test_misplaced_images_unknown_classes_and_empty_folders_are_refused(
    place: Callable[..., Path], tmp_path: Path
) -> None:
    root = place("x/a/1.png", "x/b/2.png", "stray.png")
    assert "stray.png" in refuse(ImageFolderSettings(root=root))
    (root / "images" / "stray.png").unlink()
    assert "outside data.classes" in refuse(ImageFolderSettings(root=root, classes=("a", "c")))
    assert "no record of this site" in refuse(ImageFolderSettings(root=root, sites=("z",)))
    (tmp_path / "empty").mkdir()
    assert "holds no image" in refuse(ImageFolderSettings(root=root, images=Path("empty")))


def test_one_class_folder_is_refused(place: Callable[..., Path]) -> None:
    assert "a classifier needs two" in refuse(ImageFolderSettings(root=place("a/1.png", "a/2.png"), levels="class"))
