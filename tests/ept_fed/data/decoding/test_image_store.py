import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ept_fed.data.decoding.image_store import ArrayImages, FolderImages, UnreadableImageError, ZipImages, open_images
from ept_fed.errors import InputRefusedError

PIXELS = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
OUTSIDE = [
    "../secret.png",
    "a/../../secret.png",
    "/etc/passwd",
    "..\\secret.png",
    "C:\\secret.png",
    "C:/secret.png",
]


@pytest.fixture(params=["folder", "zip"])
def path(request: pytest.FixtureRequest, tmp_path: Path, encode_image: Callable[..., bytes]) -> Path:
    content = {"a/one.png": encode_image(PIXELS), "a/cut.png": encode_image(PIXELS)[:50]}
    (tmp_path / "secret.png").write_bytes(content["a/one.png"])
    if request.param == "zip":
        with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
            for name, data in (content | {"../secret.png": content["a/one.png"]}).items():
                archive.writestr(name, data)
        return tmp_path / "images.zip"
    (tmp_path / "images" / "a").mkdir(parents=True)
    for name, data in content.items():
        (tmp_path / "images" / name).write_bytes(data)
    return tmp_path / "images"


def test_an_image_reads_as_its_pixels(path: Path) -> None:
    assert np.array_equal(open_images(path).read("a/one.png"), PIXELS)


def test_missing_images_are_found_without_decoding(path: Path) -> None:
    missing = open_images(path).find_missing(["a/none.png", "a/cut.png", "a/one.png", "../secret.png", "a"])
    assert missing == ["a/none.png", "../secret.png", "a"]


@pytest.mark.parametrize("key", ["a/none.png", "a/cut.png", "", "a", "a/\0.png", *OUTSIDE])
def test_unusable_key_raises_one_kind_of_error(path: Path, key: str) -> None:
    with pytest.raises(UnreadableImageError) as caught:
        open_images(path).read(key)
    assert caught.value.image == key


@pytest.mark.parametrize("key", OUTSIDE)
def test_no_key_reaches_outside_the_store(path: Path, key: str) -> None:
    with pytest.raises(UnreadableImageError, match="outside the image store"):
        open_images(path).read(key)


def test_path_decides_the_kind_of_store(path: Path) -> None:
    assert isinstance(open_images(path), ZipImages if path.suffix else FolderImages)


def test_zip_with_a_damaged_member_is_unreadable(tmp_path: Path, encode_image: Callable[..., bytes]) -> None:
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("one.png", encode_image(PIXELS))
    content = bytearray((tmp_path / "images.zip").read_bytes())
    content[60] ^= 255
    (tmp_path / "images.zip").write_bytes(content)
    with pytest.raises(UnreadableImageError, match="cannot be unpacked"):
        open_images(tmp_path / "images.zip").read("one.png")


@pytest.mark.parametrize("content", [b"not a zip", None])
def test_a_path_that_is_neither_folder_nor_zip_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "images.rar").write_bytes(content)
    with pytest.raises(InputRefusedError) as caught:
        open_images(tmp_path / "images.rar")
    assert [problem.field for problem in caught.value.problems] == ["data.images"]


def test_grayscale_arrays_are_repeated_over_channels() -> None:
    gray = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    read = ArrayImages({"train": gray}).read("train/1")
    assert read.shape == (3, 4, 3)
    assert all(np.array_equal(read[:, :, channel], gray[1]) for channel in range(3))


def test_array_rows_are_copies() -> None:
    arrays = {"train": np.zeros((1, 2, 2, 3), np.uint8)}
    store = ArrayImages(arrays)
    store.read("train/0")[:] = 9
    assert store.read("train/0").max() == 0


@pytest.mark.parametrize("key", ["train/1", "train/-1", "train/x", "test/0", "train", ""])
def test_array_keys_out_of_range_are_missing(key: str) -> None:
    store = ArrayImages({"train": np.zeros((1, 2, 2), np.uint8)})
    assert store.find_missing([key, "train/0"]) == [key]
    with pytest.raises(UnreadableImageError):
        store.read(key)


@pytest.mark.parametrize("array", [np.zeros((1, 2, 2)), np.zeros((1, 2, 2, 4), np.uint8), np.zeros((2, 2), np.uint8)])
def test_arrays_of_another_form_are_refused(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match="need uint8"):
        ArrayImages({"train": array})
