"""From what a person named to image files: a file is taken at its word, a folder is searched."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PREDICTABLE_SUFFIXES", "FoundImage", "find_images"]

PREDICTABLE_SUFFIXES = frozenset(
    {".bmp", ".dcm", ".dicom", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)


@dataclass(frozen=True)
class FoundImage:
    """A file to predict on, or a reason why there is none.

    Attributes:
        name: the path as a person would write it; bytes that are no UTF-8 are escaped.
        path: where it is.
        reason: why it cannot be predicted on, as the end of a sentence; None if it may be read.
    """

    name: str
    path: Path
    reason: str | None = None


def find_images(paths: Iterable[Path]) -> list[FoundImage]:
    """List images in the order of `paths`, folders sorted, each file once.

    Folders are searched recursively for `PREDICTABLE_SUFFIXES`; hidden files and folders are skipped, and links to
    folders are not followed. A path without any image, and a folder that cannot be listed, give a reason instead.
    """
    found: dict[str, FoundImage] = {}
    for path in paths:
        for image in _search(path) if path.is_dir() else [_found(path)]:
            found.setdefault(os.path.abspath(image.path), image)
    return list(found.values())


def _search(folder: Path) -> Iterator[FoundImage]:
    closed: list[OSError] = []
    empty = True
    for where, folders, files in os.walk(folder, onerror=closed.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in PREDICTABLE_SUFFIXES:
                empty = False
                yield _found(Path(where) / name)
    for error in closed:
        yield _found(Path(error.filename or folder), f"cannot be listed ({error.strerror})")
    if empty and not closed:
        yield _found(folder, f"holds no file named like an image ({' '.join(sorted(PREDICTABLE_SUFFIXES))})")


def _found(path: Path, reason: str | None = None) -> FoundImage:
    return FoundImage(os.fsencode(path).decode("utf-8", "backslashreplace"), path, reason)
