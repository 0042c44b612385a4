"""The manifest source: a CSV with one row per image, and a folder or .zip of images."""

from ept_fed.config.data import ManifestSettings
from ept_fed.data.decoding.image_store import ImageStore, open_images
from ept_fed.data.records.records import Catalog, ImageRecord
from ept_fed.data.sources.catalog import complete_catalog
from ept_fed.data.sources.csv_table import Row, find_repeats, read_table
from ept_fed.data.sources.labelled_csv import LabelReader, list_columns
from ept_fed.data.splits.partition import find_unknown_sites
from ept_fed.errors import InputRefusedError, Problem

__all__ = ["read_manifest"]


def read_manifest(settings: ManifestSettings) -> Catalog:
    """Read the CSV (UTF-8, with or without a byte-order mark; separated by commas) and open the image store.

    Classes are `settings.classes`, or else the sorted distinct labels, or the names of the label columns. Without a
    group column every image is its own group. Without a site column every record is at `ONE_SITE`. The existence of
    the images is checked later, and only for images that are used. All sites are kept: `settings.sites` is only checked
    here, because splits must not depend on the sites that a machine uses.

    Raises:
        InputRefusedError: with all problems of the CSV and the store.
    """
    columns = settings.columns
    problems: list[Problem] = []
    store: ImageStore | None = None
    try:
        store = open_images(settings.root / settings.images)
    except InputRefusedError as refused:
        problems += refused.problems
    rows = read_table(settings.root / settings.manifest, "data.manifest", _wanted_columns(settings), problems)
    if not rows:
        raise InputRefusedError(problems)
    reader = LabelReader(settings, rows)
    records = [_read_record(row, settings, reader) for row in rows]
    repeats = find_repeats(rows, "data.columns.image", columns.image)
    problems += [*reader.problems, *reader.findings.to_problems(), *repeats]
    if columns.site and settings.partition.kind == "sites":
        problems += find_unknown_sites(records, settings.sites)
    return complete_catalog(records, reader.classes, settings.task, store, problems)


def _wanted_columns(settings: ManifestSettings) -> list[tuple[str, str | None]]:
    columns = settings.columns
    return [
        *list_columns(columns),
        ("data.columns.group", columns.group),
        *(("data.columns.subgroups", name) for name in columns.subgroups),
    ]


def _read_record(row: Row, settings: ManifestSettings, reader: LabelReader) -> ImageRecord:
    columns, findings = settings.columns, reader.findings
    stated = reader.read(row)
    image = findings.require(row, "data.columns.image", columns.image)
    group = findings.require(row, "data.columns.group", columns.group) if columns.group else image
    return ImageRecord(
        image=settings.image_name.replace("{image}", image) if image else "",
        labels=stated.labels,
        site=stated.site,
        group=f"{stated.site}/{group}" if columns.group and columns.group_scope == "site" else group,
        split=stated.split,
        attributes=tuple((name, row.cells[name]) for name in columns.subgroups if row.cells[name]),
    )
