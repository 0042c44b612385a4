"""Finding image files from paths: a named file is always used, and a folder is searched by file suffix."""

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
    """A file to predict on, or the reason why a path gives no such file.

    Attributes:
        name: the path as text; bytes that are not UTF-8 are escaped.
        path: path of the file.
        reason: why no prediction is possible, as the end of a sentence; None if the file may be read.
    """

    name: str
    path: Path
    reason: str | None = None


def find_images(paths: Iterable[Path]) -> list[FoundImage]:
    """Return the images in the order of `paths`; the contents of folders are sorted, and each file is listed once.

    Folders are searched recursively for `PREDICTABLE_SUFFIXES`. Hidden files and folders are skipped, and links to
    folders are not followed. A folder without images, or one that cannot be listed, gives an entry with a reason.
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
        yield _found(folder, f"contains no file with the suffix of an image ({' '.join(sorted(PREDICTABLE_SUFFIXES))})")


def _found(path: Path, reason: str | None = None) -> FoundImage:
    return FoundImage(os.fsencode(path).decode("utf-8", "backslashreplace"), path, reason)
