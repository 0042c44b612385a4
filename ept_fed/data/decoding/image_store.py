"""Image stores with a common interface: a folder, a .zip, or arrays in memory."""

import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Protocol

import numpy as np

from ept_fed.data.decoding.dicom_file import DICOM_SUFFIXES, dicom_mode, is_dicom, read_dicom
from ept_fed.data.decoding.image_file import UnreadableImageError, decode_image, image_mode
from ept_fed.errors import InputRefusedError, Problem

__all__ = ["ArrayImages", "FolderImages", "ImageStore", "UnreadableImageError", "ZipImages", "open_images"]

_MAX_FILE_BYTES = 1 << 30


class ImageStore(Protocol):
    """Reads images by key."""

    def read(self, image: str) -> np.ndarray:
        """Return the image as (H, W, 3) uint8 RGB.

        Raises:
            UnreadableImageError: if it is missing, truncated or cannot be decoded.
        """
        ...

    def find_missing(self, images: Iterable[str]) -> list[str]:
        """Return those of `images` that the store does not contain, in their order; no image is decoded."""
        ...

    def mode(self, image: str) -> str:
        """Return the storage mode of a readable image, e.g. "JPEG RGB", "DICOM MONOCHROME2" or "array L"."""
        ...


class FolderImages:
    """Image files below a folder, including DICOM; keys are paths relative to it, with forward slashes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, image: str) -> np.ndarray:
        """Read and decode one file; see `ImageStore.read`. A key that points outside the folder is refused."""
        return _decode(image, self._load(image))

    def find_missing(self, images: Iterable[str]) -> list[str]:
        """Return the keys without a file, and the keys that point outside the folder."""
        return [image for image in images if _escapes(image) or not (self._folder / image).is_file()]

    def mode(self, image: str) -> str:
        """Return the storage mode of a file; see `ImageStore.mode`."""
        return _mode(self._load(image))

    def _load(self, image: str) -> bytes:
        _check_inside(image)
        path = self._folder / image
        try:
            if path.stat().st_size > _MAX_FILE_BYTES:
                raise UnreadableImageError(image, "is a file of more than 1 GiB")
            return path.read_bytes()
        except FileNotFoundError as error:
            raise UnreadableImageError(image, "is missing") from error
        except (OSError, ValueError) as error:
            raise UnreadableImageError(image, f"cannot be read ({type(error).__name__})") from error


class ZipImages:
    """Image files in a .zip; keys are the names inside the archive.

    The archive is opened at the first use and kept open. `zipfile` serialises reads, so threads may share a store.
    """

    def __init__(self, archive: Path) -> None:
        self._archive = archive
        self._handle: zipfile.ZipFile | None = None

    def read(self, image: str) -> np.ndarray:
        """Read and decode one member; see `ImageStore.read`. A key that points outside the archive is refused."""
        return _decode(image, self._load(image))

    def find_missing(self, images: Iterable[str]) -> list[str]:
        """Return the keys that the archive does not contain, and the keys that point outside it."""
        held = set(self._open().namelist())
        return [image for image in images if image not in held or _escapes(image)]

    def mode(self, image: str) -> str:
        """Return the storage mode of a member; see `ImageStore.mode`."""
        return _mode(self._load(image))

    def _load(self, image: str) -> bytes:
        _check_inside(image)
        try:
            handle = self._open()
            member = handle.getinfo(image)
            if member.file_size > _MAX_FILE_BYTES:
                raise UnreadableImageError(image, "is a file of more than 1 GiB")
            return handle.read(member)
        except KeyError as error:
            raise UnreadableImageError(image, "is missing") from error
        except RuntimeError as error:  # includes NotImplementedError, raised for an unknown compression
            raise UnreadableImageError(image, "is encrypted or packed in a way that cannot be read") from error
        except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise UnreadableImageError(image, f"cannot be unpacked ({type(error).__name__})") from error

    def _open(self) -> zipfile.ZipFile:
        if self._handle is None:
            self._handle = zipfile.ZipFile(self._archive)
        return self._handle


class ArrayImages:
    """Images in memory; the key of row 12 of the array "train" is "train/12".

    Args:
        arrays: uint8 arrays (n, H, W) for grayscale or (n, H, W, 3) for RGB. Grayscale is repeated over the channels
            when it is read.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        for name, array in arrays.items():
            if array.dtype != np.uint8 or not (array.ndim == 3 or (array.ndim == 4 and array.shape[3] == 3)):
                shape = f"{array.dtype} {array.shape}"
                raise ValueError(f"{name} is {shape}; need uint8 (n, H, W) or (n, H, W, 3)")
        self._arrays = dict(arrays)

    def read(self, image: str) -> np.ndarray:
        """Return a copy of one row as RGB; see `ImageStore.read`."""
        if self.find_missing([image]):
            raise UnreadableImageError(image, "is missing")
        name, _, index = image.rpartition("/")
        row = self._arrays[name][int(index)]
        return np.repeat(row[:, :, None], 3, axis=2) if row.ndim == 2 else row.copy()

    def find_missing(self, images: Iterable[str]) -> list[str]:
        """Return the keys without an array or without a row in it."""
        return [image for image in images if not self._holds(image)]

    def mode(self, image: str) -> str:
        """Return "array L" or "array RGB"; see `ImageStore.mode`."""
        return "array L" if self._arrays[image.rpartition("/")[0]].ndim == 3 else "array RGB"

    def _holds(self, image: str) -> bool:
        name, _, index = image.rpartition("/")
        return name in self._arrays and index.isdecimal() and int(index) < len(self._arrays[name])


def open_images(path: Path) -> ImageStore:
    """Open a folder or a .zip.

    Raises:
        InputRefusedError: if the path is neither.
    """
    if path.is_dir():
        return FolderImages(path)
    if not path.is_file():
        raise InputRefusedError([Problem("data.images", str(path), "no such file or folder; correct the path")])
    try:
        with zipfile.ZipFile(path):
            pass
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        fix = "is neither a folder nor a readable .zip; unpack it, or correct the path"
        raise InputRefusedError([Problem("data.images", str(path), fix)]) from error
    return ZipImages(path)


def _decode(image: str, content: bytes) -> np.ndarray:
    named = PurePosixPath(image).suffix.lower() in DICOM_SUFFIXES
    return read_dicom(image, content) if named or is_dicom(content) else decode_image(image, content)


def _mode(content: bytes) -> str:
    return dicom_mode(content) if is_dicom(content) else image_mode(content)


def _escapes(image: str) -> bool:
    """Return whether a key is absolute or points outside the store, by the rules of POSIX or of Windows."""
    return (
        PurePosixPath(image).is_absolute()
        or bool(PureWindowsPath(image).anchor)
        or ".." in PureWindowsPath(image).parts
    )


def _check_inside(image: str) -> None:
    if _escapes(image):
        raise UnreadableImageError(image, "points outside the image store")
