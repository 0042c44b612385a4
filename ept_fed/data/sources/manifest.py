"""The manifest source: a CSV with one row per image, next to a folder or .zip of images."""

from ept_fed.config.data import ManifestSettings
from ept_fed.data.decoding.image_store import ImageStore, open_images
from ept_fed.data.records.records import ONE_SITE, Catalog, ImageRecord
from ept_fed.data.sources.catalog import complete_catalog
from ept_fed.data.sources.class_names import names_of_columns, names_of_labels
from ept_fed.data.sources.csv_table import Findings, Row, find_repeats, parse_split, read_class, read_flags, read_table
from ept_fed.data.splits.partition import find_unknown_sites
from ept_fed.errors import InputRefusedError, Problem

__all__ = ["read_manifest"]


def read_manifest(settings: ManifestSettings) -> Catalog:
    """Read the CSV (UTF-8, with or without a byte-order mark; commas) and open the image store.

    Classes are `settings.classes`, or else the sorted distinct labels, or the names of the label columns.
    Without a group column every image is a group of its own. Without a site column every record is at
    `ONE_SITE`. Whether the images exist is checked later, for those that are used. All sites are kept:
    `settings.sites` is only checked here, because splits must not depend on which sites a machine looks at.

    Raises:
        InputRefusedError: with everything wrong with the CSV and the store.
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
    if columns.labels:
        classes, wrong = names_of_columns(settings.classes, columns.labels, "data.columns.labels")
    else:
        label = columns.label or ""
        labels = (row.cells[label] for row in rows)
        classes, wrong = names_of_labels(settings.classes, labels, "data.columns.label", label)
    findings = Findings()
    index = {name: position for position, name in enumerate(classes)}
    records = [_read_record(row, settings, index, findings) for row in rows]
    problems += [*wrong, *findings.to_problems(), *find_repeats(rows, "data.columns.image", columns.image)]
    if columns.site and settings.partition.kind == "sites":
        problems += find_unknown_sites(records, settings.sites)
    return complete_catalog(records, classes, settings.task, store, problems)


def _wanted_columns(settings: ManifestSettings) -> list[tuple[str, str | None]]:
    columns = settings.columns
    return [
        ("data.columns.image", columns.image),
        ("data.columns.label", None if columns.labels else columns.label),
        *(("data.columns.labels", name) for name in columns.labels or ()),
        ("data.columns.site", columns.site),
        ("data.columns.split", columns.split),
        ("data.columns.group", columns.group),
        *(("data.columns.subgroups", name) for name in columns.subgroups),
    ]


def _read_record(row: Row, settings: ManifestSettings, index: dict[str, int], findings: Findings) -> ImageRecord:
    columns = settings.columns
    if columns.labels:
        single = settings.task == "single_label"
        labels = read_flags(row, "data.columns.labels", columns.labels, index, findings, exactly_one=single)
    else:
        labels = read_class(row, "data.columns.label", columns.label or "", index, findings)
    image = findings.require(row, "data.columns.image", columns.image)
    site = findings.require(row, "data.columns.site", columns.site) if columns.site else ONE_SITE
    group = findings.require(row, "data.columns.group", columns.group) if columns.group else image
    return ImageRecord(
        image=settings.image_name.replace("{image}", image) if image else "",
        labels=labels,
        site=site,
        group=f"{site}/{group}" if columns.group and columns.group_scope == "site" else group,
        split=parse_split(row, "data.columns.split", columns.split, findings) if columns.split else None,
        attributes=tuple((name, row.cells[name]) for name in columns.subgroups if row.cells[name]),
    )
