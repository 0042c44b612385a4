"""The image-folder source: folder names give the site, the class and the patient; no list file is needed."""

import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from ept_fed.config.data import ImageFolderSettings
from ept_fed.data.decoding.image_store import open_images
from ept_fed.data.records.records import ONE_SITE, Catalog, ImageRecord
from ept_fed.data.splits.partition import find_unknown_sites
from ept_fed.errors import InputRefusedError, Problem

__all__ = ["IMAGE_SUFFIXES", "read_image_folder"]

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
_SHOWN = 5


def read_image_folder(settings: ImageFolderSettings) -> Catalog:
    """List a folder or .zip whose sub-folders are `settings.levels`, e.g. site/class/image.png.

    A single top folder around everything, as in many archives, is skipped. Hidden files and files without an image
    extension are ignored. Without a group level every image is its own group. Groups with the same name at two sites
    are two groups. Classes are `settings.classes`, or the sorted names of the class folders. A class folder that is not
    in `settings.classes` is refused.

    Raises:
        InputRefusedError: with all problems of the folder.
    """
    root = settings.root / settings.images
    store = open_images(root)
    names = sorted(name for name in _list_names(root) if _is_image(name))
    if not names:
        fix = f"holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}); correct the path"
        raise InputRefusedError([Problem("data.images", str(root), fix)])
    levels = settings.levels.split("/")
    wrapped = len({PurePosixPath(name).parts[0] for name in names}) == 1
    skip = 1 if wrapped and all(len(PurePosixPath(name).parts) == len(levels) + 2 for name in names) else 0
    misplaced = [name for name in names if len(PurePosixPath(name).parts) != skip + len(levels) + 1]
    if misplaced:
        fix = f"{len(misplaced)} image(s) are not at {settings.levels}/IMAGE; move them, or set data.levels"
        raise InputRefusedError([Problem("data.levels", misplaced[:_SHOWN], fix)])
    placed = [(name, dict(zip(levels, PurePosixPath(name).parts[skip:-1], strict=True))) for name in names]
    there = sorted({place["class"] for _, place in placed})
    classes = settings.classes or tuple(there)
    problems = _check_classes(there, classes)
    index = {name: position for position, name in enumerate(classes)}
    records = tuple(
        ImageRecord(
            image=name,
            labels=(index.get(place["class"], 0),),
            site=place.get("site", ONE_SITE),
            group="/".join(place[level] for level in ("site", "group") if level in place) if "group" in place else name,
            split=None,
        )
        for name, place in placed
    )
    if "site" in levels and settings.partition.kind == "sites":
        problems += find_unknown_sites(records, settings.sites)
    if problems:
        raise InputRefusedError(problems)
    return Catalog(records, tuple(classes), settings.task, store)


def _list_names(root: Path) -> Iterable[str]:
    if root.is_dir():
        return [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    with zipfile.ZipFile(root) as archive:
        return [info.filename for info in archive.infolist() if not info.is_dir()]


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden


def _check_classes(there: list[str], classes: tuple[str, ...]) -> list[Problem]:
    unknown = [name for name in there if name not in classes]
    if unknown:
        fix = f"are class folders outside data.classes ({', '.join(classes)}); add them there or move them away"
        return [Problem("data.classes", unknown, fix)]
    if len(classes) < 2:
        return [Problem("data.levels", there, "there is only one class folder; a classifier needs two")]
    return []
