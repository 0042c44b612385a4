"""Reading of a CSV with labels of images: its columns for image, label, site and split.

The manifest source and the DICOM source share these columns and this reader.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ept_fed.config.data import DicomColumns, DicomSettings, ManifestColumns, ManifestSettings
from ept_fed.data.records.records import ONE_SITE
from ept_fed.data.sources.class_names import names_of_columns, names_of_labels
from ept_fed.data.sources.csv_table import Findings, Row, parse_split, read_class, read_flags

__all__ = ["LabelReader", "RowLabels", "list_columns"]


def list_columns(columns: ManifestColumns | DicomColumns) -> list[tuple[str, str | None]]:
    """Return (setting, column) for the image, label, site and split columns; a column of None is not used."""
    return [
        ("data.columns.image", columns.image),
        ("data.columns.label", None if columns.labels else columns.label),
        *(("data.columns.labels", name) for name in columns.labels or ()),
        ("data.columns.site", columns.site),
        ("data.columns.split", columns.split),
    ]


@dataclass(frozen=True)
class RowLabels:
    """Class indices (ascending), site and split of the image of one row; the split may be None."""

    labels: tuple[int, ...]
    site: str
    split: str | None


class LabelReader:
    """Reads rows according to the columns in the settings.

    Attributes:
        classes: `data.classes`, or the sorted distinct labels, or the names of the label columns.
        problems: problems of the classes.
        findings: problems of the rows that have been read so far.
    """

    def __init__(self, settings: ManifestSettings | DicomSettings, rows: Sequence[Row]) -> None:
        """Determine the classes from the settings, or from all rows."""
        columns = settings.columns
        if columns.labels:
            self.classes, self.problems = names_of_columns(settings.classes, columns.labels, "data.columns.labels")
        else:
            label = columns.label or ""
            labels = (row.cells[label] for row in rows)
            self.classes, self.problems = names_of_labels(settings.classes, labels, "data.columns.label", label)
        self.findings = Findings()
        self._columns, self._single = columns, settings.task == "single_label"
        self._index = {name: position for position, name in enumerate(self.classes)}

    def read(self, row: Row) -> RowLabels:
        """Return the labels, site and split of a row; problems are added to `findings`."""
        columns, findings = self._columns, self.findings
        if columns.labels:
            labels = read_flags(
                row, "data.columns.labels", columns.labels, self._index, findings, exactly_one=self._single
            )
        else:
            labels = read_class(row, "data.columns.label", columns.label or "", self._index, findings)
        site = findings.require(row, "data.columns.site", columns.site) if columns.site else ONE_SITE
        split = parse_split(row, "data.columns.split", columns.split, findings) if columns.split else None
        return RowLabels(labels, site, split)
