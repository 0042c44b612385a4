"""The MedFMC source: the challenge's list files, https://doi.org/10.1038/s41597-023-02460-0.

A line contains a file name, a space and the labels; the name may contain spaces:

    image.png 1                 one class index (colon)
    image.png 1,0,0,1           0/1 per class, commas (chest)
    image.png 1 0 0 1           0/1 per class, spaces (endo)

The five published samplings of K images per class are named `{dataset}_{K}-shot_train_exp{1…5}.txt`, each with a
`…_val_exp….txt`. A check of the lists in openmedlab/MedFM shows that the samplings for chest and endo repeat up to a
sixth of their lines, and that up to all of their training images are in the validation list too. The samplings for
colon have neither problem.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ept_fed.config.data import MedFMCSettings
from ept_fed.data.decoding.image_store import ImageStore, open_images
from ept_fed.data.records.records import ONE_SITE, Catalog, ImageRecord
from ept_fed.data.sources.catalog import complete_catalog
from ept_fed.data.sources.class_names import names_of_columns
from ept_fed.data.sources.csv_table import SHOWN, Findings
from ept_fed.errors import InputRefusedError, Problem

__all__ = ["MEDFMC_CLASSES", "ListedImage", "parse_list", "read_medfmc"]

# In the order of the label columns; the 19 names of ChestDR are written as in the challenge's own code.
MEDFMC_CLASSES: dict[str, tuple[str, ...]] = {
    "chest": (
        "pleural_effusion",
        "nodule",
        "pneumonia",
        "cardiomegaly",
        "hilar_enlargement",
        "fracture_old",
        "fibrosis",
        "aortic_calcification",
        "tortuous_aorta",
        "thickened_pleura",
        "TB",
        "pneumothorax",
        "emphysema",
        "atelectasis",
        "calcification",
        "pulmonary_edema",
        "increased_lung_markings",
        "elevated_diaphragm",
        "consolidation",
    ),
    "colon": ("negative", "positive"),
    "endo": ("ulcer", "erosion", "polyp", "tumor"),
}

# The name ends after an extension of three or four letters that is followed by a space and then only labels.
_LINE = re.compile(r"(?P<image>.+\.[A-Za-z]{3,4})\s+(?P<labels>\d+(?:[ ,]\d+)*)")


@dataclass(frozen=True)
class ListedImage:
    """One line of a list: the file name and its class indices in ascending order."""

    image: str
    labels: tuple[int, ...]


def read_medfmc(settings: MedFMCSettings) -> Catalog:
    """Read the training, validation and test lists of one of the three datasets.

    An image that is listed twice with equal labels is one image. An image that is in the training list and in the
    validation list is refused, or with `overlap: leave_out` left out of validation. An image that is in the test list
    and in another list is always refused. The group of an image is the match of `group_pattern` in its file name, or
    the image itself. All images are at `ONE_SITE`.

    Raises:
        InputRefusedError: with all problems of the lists and the store.
    """
    problems: list[Problem] = []
    store: ImageStore | None = None
    try:
        store = open_images(settings.root / settings.images)
    except InputRefusedError as refused:
        problems += refused.problems
    every = MEDFMC_CLASSES[settings.dataset]
    classes, wrong = names_of_columns(settings.classes, every, f"data.dataset = '{settings.dataset}'")
    problems += wrong
    listed = {
        split: _read_list(settings.root / settings.lists / name, f"data.{split}_list", every, problems)
        for split, name in _name_lists(settings).items()
    }
    problems += _find_overlaps(listed, settings.overlap)
    if settings.overlap == "leave_out" and "validation" in listed:
        training = {entry.image for entry in listed["train"]}
        listed["validation"] = [entry for entry in listed["validation"] if entry.image not in training]
    place = {every.index(name): position for position, name in enumerate(classes) if name in every}
    groups = _find_groups((entry.image for entries in listed.values() for entry in entries), settings, problems)
    records = [
        ImageRecord(
            image=entry.image,
            labels=tuple(sorted(place[label] for label in entry.labels if label in place)),
            site=ONE_SITE,
            group=groups[entry.image],
            split=split if len(listed) > 1 else None,
        )
        for split, entries in listed.items()
        for entry in entries
    ]
    return complete_catalog(records, classes, settings.task, store, problems)


def _name_lists(settings: MedFMCSettings) -> dict[str, str]:
    """Return the list file of each split; the files of a sampling have the challenge's names."""
    names = {"train": settings.train_list, "validation": settings.validation_list, "test": settings.test_list}
    if settings.sampling is not None:
        stem = f"{settings.dataset}_{settings.sampling_shots}-shot"
        names |= {"train": f"{stem}_train_{settings.sampling}.txt", "validation": f"{stem}_val_{settings.sampling}.txt"}
    return {split: name for split, name in names.items() if name is not None}


def parse_list(text: str, classes: Sequence[str], name: str) -> tuple[list[ListedImage], list[Problem]]:
    """Read the lines of one list; the format is described at the top of this module.

    Args:
        text: content of the file.
        classes: C class names. If C is 2, a single label is a class index. Otherwise a line has C labels of 0 or 1.
        name: the setting that contains the list's name, for problems.

    Returns:
        The images in the order of the list, each once, and the problems.
    """
    findings = Findings()
    listed: dict[str, ListedImage] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        found = _LINE.fullmatch(line.strip())
        if found is None:
            findings.add(name, number, line.strip()[:80], "must be a file name, a space and labels")
            continue
        values = [int(value) for value in re.split("[ ,]", found["labels"])]
        labels = _to_indices(values, len(classes))
        if labels is None:
            fix = (
                f"needs one index below {len(classes)}" if len(classes) == 2 else f"needs {len(classes)} values 0 or 1"
            )
            findings.add(name, number, found["labels"], fix)
            continue
        entry = ListedImage(found["image"], labels)
        if listed.setdefault(entry.image, entry) != entry:
            findings.add(name, number, entry.image, "is listed twice with different labels; keep the correct line")
    return list(listed.values()), findings.to_problems()


def _to_indices(values: Sequence[int], num_classes: int) -> tuple[int, ...] | None:
    if num_classes == 2 and len(values) == 1:
        return (values[0],) if values[0] < num_classes else None
    if len(values) != num_classes or not set(values) <= {0, 1}:
        return None
    return tuple(index for index, value in enumerate(values) if value)


def _read_list(path: Path, name: str, classes: Sequence[str], problems: list[Problem]) -> list[ListedImage]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        problems.append(
            Problem(name, str(path), f"cannot be read ({type(error).__name__}); correct data.lists or {name}")
        )
        return []
    listed, wrong = parse_list(text, classes, name)
    problems += wrong
    if not listed and not wrong:
        problems.append(Problem(name, str(path), "lists no image"))
    return listed


def _find_overlaps(listed: dict[str, list[ListedImage]], overlap: str) -> list[Problem]:
    places = Counter(
        (earlier, later, entry.image)
        for earlier, later in (("train", "validation"), ("train", "test"), ("validation", "test"))
        for entry in (*listed.get(earlier, ()), *listed.get(later, ()))
    )
    shared: dict[tuple[str, str], list[str]] = {}
    for (earlier, later, image), count in places.items():
        if count > 1:
            shared.setdefault((earlier, later), []).append(image)
    problems = []
    for (earlier, later), images in shared.items():
        advice = "remove them from one list"
        if (earlier, later) == ("train", "validation"):
            if overlap == "leave_out":
                continue
            advice += ", or set data.overlap=leave_out to leave them out of validation"
        fix = f"{len(images)} image(s) are in the {earlier} list and in the {later} list; {advice}"
        problems.append(Problem(f"data.{later}_list", images[:SHOWN], fix))
    return problems


def _find_groups(images: Iterable[str], settings: MedFMCSettings, problems: list[Problem]) -> dict[str, str]:
    """Return the group of each image."""
    if settings.group_pattern is None:
        return {image: image for image in images}
    found = {image: re.search(settings.group_pattern, image) for image in images}
    without = [image for image, match in found.items() if match is None or not match[1]]
    if without:
        fix = f"finds no patient in {len(without)} file name(s), e.g. '{without[0]}'; correct it, or set it to null"
        problems.append(Problem("data.group_pattern", settings.group_pattern, fix))
    return {image: match[1] if match is not None and match[1] else image for image, match in found.items()}
