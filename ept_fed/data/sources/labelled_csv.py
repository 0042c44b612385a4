"""A CSV that labels images: its columns for image, label, site and split, and the reading of a row.

The manifest and the DICOM source have the same columns and read them here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ept_fed.config.data import DicomColumns, DicomSettings, ManifestColumns, ManifestSettings
from ept_fed.data.records.records import ONE_SITE
from ept_fed.data.sources.class_names import names_of_columns, names_of_labels
from ept_fed.data.sources.csv_table import Findings, Row, parse_split, read_class, read_flags

__all__ = ["LabelReader", "RowLabels", "list_columns"]


def list_columns(columns: ManifestColumns | DicomColumns) -> list[tuple[str, str | None]]:
    """Return (setting, column) of every column that the settings name."""
    return [
        ("data.columns.image", columns.image),
        ("data.columns.label", None if columns.labels else columns.label),
        *(("data.columns.labels", name) for name in columns.labels or ()),
        ("data.columns.site", columns.site),
        ("data.columns.split", columns.split),
    ]


@dataclass(frozen=True)
class RowLabels:
    """What one row states of its image: class indices, ascending; site; split, or None."""

    labels: tuple[int, ...]
    site: str
    split: str | None


class LabelReader:
    """Reads rows by the columns of the settings.

    Attributes:
        classes: `data.classes`, or the distinct labels, sorted, or the names of the label columns.
        problems: what is wrong with the classes.
        findings: what is wrong with the rows read so far.
    """

    def __init__(self, settings: ManifestSettings | DicomSettings, rows: Sequence[Row]) -> None:
        """Take the settings and all rows, which may define the classes."""
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
        """Return what a row states; what cannot be read goes into `findings`."""
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
