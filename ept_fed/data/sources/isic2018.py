"""The ISIC 2018 source: task 3 of the challenge as published, https://challenge.isic-archive.com/data/#2018.

ISIC2018_Task3_Training_Input/ISIC_0024306.jpg                              images; Validation and Test alike
ISIC2018_Task3_Training_GroundTruth/ISIC2018_Task3_Training_GroundTruth.csv image,MEL,NV,BCC,AKIEC,BKL,DF,VASC
ISIC2018_Task3_Training_LesionGroupings.csv                                 image,lesion_id,diagnosis_confirm_type

The CSV files may also be next to the folders. Lesions are published only for the training images. These files do not
show whether an official validation or test image belongs to a training lesion.
"""

from pathlib import Path

from ept_fed.config.data import ISIC2018Settings
from ept_fed.data.decoding.image_store import ImageStore, open_images
from ept_fed.data.records.records import ONE_SITE, Catalog, ImageRecord
from ept_fed.data.sources.catalog import complete_catalog
from ept_fed.data.sources.class_names import names_of_columns
from ept_fed.data.sources.csv_table import Findings, Row, find_repeats, read_flags, read_table
from ept_fed.errors import InputRefusedError, Problem

__all__ = ["ISIC2018_CLASSES", "read_isic2018"]

ISIC2018_CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
_STEM = "ISIC2018_Task3_"
_GROUPINGS = f"{_STEM}Training_LesionGroupings.csv"


def read_isic2018(settings: ISIC2018Settings) -> Catalog:
    """Read the ground truth of the chosen parts; columns other than the seven classes are ignored.

    With one part the split is drawn later, by lesion. With several parts each part is its own split. An image without a
    lesion is its own group. All images are at `ONE_SITE`.

    Raises:
        InputRefusedError: with all problems of the files.
    """
    problems: list[Problem] = []
    store: ImageStore | None = None
    try:
        store = open_images(settings.root / settings.images)
    except InputRefusedError as refused:
        problems += refused.problems
    classes, wrong = names_of_columns(settings.classes, ISIC2018_CLASSES, "ISIC 2018")
    problems += wrong
    lesions = _read_lesions(settings, problems) if settings.groupings and "training" in settings.parts else {}
    index = {name: position for position, name in enumerate(classes)}
    findings = Findings()
    records = []
    for part in settings.parts:
        stem = f"{_STEM}{part.capitalize()}"
        field = "data.parts"
        columns = [(field, "image"), *((field, name) for name in ISIC2018_CLASSES)]
        rows = read_table(_locate(settings.root, f"{stem}_GroundTruth"), field, columns, problems)
        problems += find_repeats(rows, field, "image")
        split = None if len(settings.parts) == 1 else "train" if part == "training" else part
        records += [_read_record(row, f"{stem}_Input", split, index, lesions, findings) for row in rows]
    if lesions:
        strangers = [
            record.image for record in records if record.split in (None, "train") and record.image == record.group
        ]
        if strangers:
            fix = f"{len(strangers)} training image(s) have no lesion in {_GROUPINGS}; set data.groupings=false"
            problems.append(Problem("data.groupings", strangers[:5], fix))
    problems += findings.to_problems()
    return complete_catalog(records, classes, settings.task, store, problems)


def _read_record(
    row: Row, folder: str, split: str | None, index: dict[str, int], lesions: dict[str, str], findings: Findings
) -> ImageRecord:
    name = findings.require(row, "data.parts", "image")
    image = f"{folder}/{name}.jpg"
    return ImageRecord(
        image=image,
        labels=read_flags(row, "data.parts", ISIC2018_CLASSES, index, findings, exactly_one=True),
        site=ONE_SITE,
        group=lesions.get(name, image),
        split=split,
    )


def _read_lesions(settings: ISIC2018Settings, problems: list[Problem]) -> dict[str, str]:
    """Return the lesion of each training image."""
    columns = [("data.groupings", "image"), ("data.groupings", "lesion_id")]
    rows = read_table(settings.root / _GROUPINGS, "data.groupings", columns, problems)
    return {row.cells["image"]: row.cells["lesion_id"] for row in rows if row.cells["lesion_id"]}


def _locate(root: Path, stem: str) -> Path:
    """Return the path of a CSV, which is in the folder that its archive unpacks to, or next to that folder."""
    unpacked = root / stem / f"{stem}.csv"
    return unpacked if unpacked.exists() else root / f"{stem}.csv"
