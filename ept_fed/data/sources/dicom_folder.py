"""The DICOM source: a folder as exported by a PACS, and a CSV that labels its images.

PatientID groups the images and never leaves this module in plaintext: records hold its HMAC-SHA256 under
`patient_key`. Without a key, the hash hides an identifier from a reader, but not from a person who can list and hash
all identifiers. Keep the key at the site. Patients are distinguished only by PatientID. If two issuers use one number
for two people, their images form one group; if one person has two numbers, the images form two groups.
"""

import hmac
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ept_fed.config.data import DicomSettings
from ept_fed.data.decoding.dicom_file import DICOM_SUFFIXES, is_dicom, read_header
from ept_fed.data.decoding.image_file import UnreadableImageError
from ept_fed.data.decoding.image_store import FolderImages
from ept_fed.data.records.records import Catalog, ImageRecord
from ept_fed.data.sources.catalog import complete_catalog
from ept_fed.data.sources.csv_table import SHOWN, Row, find_repeats, read_table
from ept_fed.data.sources.labelled_csv import LabelReader, RowLabels, list_columns
from ept_fed.data.splits.partition import find_unknown_sites
from ept_fed.errors import InputRefusedError, Problem

__all__ = ["hash_patient", "read_dicom_folder"]

_PREAMBLE = 132


@dataclass(frozen=True)
class _File:
    """One DICOM file: path below the folder, identifiers, and the reason if it cannot be used."""

    path: str
    uid: str
    patient: str
    has_pixels: bool
    refusal: str | None


def read_dicom_folder(settings: DicomSettings) -> Catalog:
    """List the DICOM files of a folder, recognised by content or file extension, and label them from the CSV.

    Rows and files must match one to one, by SOPInstanceUID or by path. Only files without pixels (reports, presentation
    states, indices) may have no row; they are ignored. Only headers are read here. A file whose pixels cannot be used
    (several frames, no pixels, a private transfer syntax) is listed too; a run refuses or drops it according to
    `max_unreadable`.

    Raises:
        InputRefusedError: with all problems of the folder and the CSV.
    """
    problems: list[Problem] = []
    columns = settings.columns
    rows = read_table(settings.root / settings.labels, "data.labels", list_columns(columns), problems)
    root = settings.root / settings.images
    named = {row.cells[columns.image] for row in rows}
    found = [_scan(root, path) for path in _list_files(root)]
    files = [file for file in found if file.has_pixels or _name(file, columns.image_is) in named]
    if not files:
        fix = (
            "holds no DICOM file; correct the path"
            if root.is_dir()
            else "is not a folder; unpack it, or correct the path"
        )
        problems.append(Problem("data.images", str(root), fix))
    if not rows or not files:
        raise InputRefusedError(problems)
    reader = LabelReader(settings, rows)
    problems += [*reader.problems, *find_repeats(rows, "data.columns.image", columns.image)]
    problems += _match(rows, files, columns.image, columns.image_is) + _check_patients(files, settings.group)
    key = _read_key(settings, problems)
    by_name = {_name(file, columns.image_is): file for file in files}
    records = [
        _to_record(reader.read(row), by_name[row.cells[columns.image]], settings, key)
        for row in rows
        if row.cells[columns.image] in by_name
    ]
    problems += reader.findings.to_problems()
    if columns.site and settings.partition.kind == "sites":
        problems += find_unknown_sites(records, settings.sites)
    if problems:
        problems += _describe_refused(files)
    return complete_catalog(records, reader.classes, settings.task, FolderImages(root), problems)


def hash_patient(patient: str, key: bytes) -> str:
    """Return the pseudonym of a PatientID under a key, 16 hex digits."""
    return hmac.new(key, patient.encode(), "sha256").hexdigest()[:16]


def _to_record(stated: RowLabels, file: _File, settings: DicomSettings, key: bytes) -> ImageRecord:
    group = hash_patient(file.patient, key) if settings.group == "patient" and file.patient else file.path
    return ImageRecord(
        image=file.path,
        labels=stated.labels,
        site=stated.site,
        # Two hospitals number their patients independently, so equal numbers at two sites are different patients.
        group=f"{stated.site}/{group}" if settings.columns.site else group,
        split=stated.split,
    )


def _list_files(root: Path) -> list[str]:
    """Return the sorted paths below `root` of files that are DICOM by content or extension, without hidden files."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            path = Path(folder) / name
            if name.startswith(".") or name == "DICOMDIR":
                continue
            if path.suffix.lower() in DICOM_SUFFIXES or _has_mark(path):
                found.append(path.relative_to(root).as_posix())
    return sorted(found)


def _has_mark(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return is_dicom(file.read(_PREAMBLE))
    except OSError:
        return False


def _scan(root: Path, path: str) -> _File:
    try:
        header = read_header(path, root / path)
    except UnreadableImageError as error:
        return _File(path, "", "", True, error.reason)
    return _File(path, header.uid, header.patient, header.has_pixels, header.refusal)


def _name(file: _File, image_is: str) -> str:
    return file.uid if image_is == "uid" else file.path


def _match(rows: Sequence[Row], files: Sequence[_File], column: str, image_is: str) -> list[Problem]:
    """Return a problem for rows without a file, for files without a row, and for files with the same name."""
    names = Counter(_name(file, image_is) for file in files if file.uid or image_is == "path")
    listed = {row.cells[column] for row in rows}
    absent = [row.cells[column] for row in rows if row.cells[column] not in names]
    unlabelled = [file.path for file in files if _name(file, image_is) not in listed]
    shared = [file.path for file in files if names[_name(file, image_is)] > 1]
    field, found = "data.columns.image", []
    if absent:
        fix = f"{len(absent)} row(s) have no file below data.images; restore the files, or remove the rows"
        if not set(names) & listed:
            fix += f"; nothing matches, is '{column}' a column of {'UIDs' if image_is == 'uid' else 'paths'}?"
        found.append(Problem(field, absent[:SHOWN], fix))
    if unlabelled:
        fix = f"{len(unlabelled)} DICOM file(s) have no row in the CSV; label them, or move them away"
        found.append(Problem("data.labels", unlabelled[:SHOWN], fix))
    if shared:
        fix = f"{len(shared)} files have the same SOPInstanceUID as another; keep one of each, or label by path"
        found.append(Problem(field, shared[:SHOWN], fix))
    return found


def _check_patients(files: Sequence[_File], group: str) -> list[Problem]:
    nameless = [file.path for file in files if not file.patient and file.refusal is None]
    if group == "image" or not nameless:
        return []
    fix = f"{len(nameless)} file(s) have no PatientID; restore it (a pseudonym suffices), or set data.group=image"
    return [Problem("data.group", nameless[:SHOWN], fix)]


def _describe_refused(files: Sequence[_File]) -> list[Problem]:
    """Return a problem for each reason why files cannot be used."""
    reasons: dict[str, list[str]] = {}
    for file in files:
        if file.refusal is not None:
            reasons.setdefault(file.refusal, []).append(file.path)
    return [
        Problem("data.images", paths[:SHOWN], f"{len(paths)} file(s) cannot be used: each {reason}")
        for reason, paths in reasons.items()
    ]


def _read_key(settings: DicomSettings, problems: list[Problem]) -> bytes:
    if settings.patient_key is None:
        return b"ept-fed"
    path = settings.root / settings.patient_key
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        problems.append(Problem("data.patient_key", str(path), f"cannot be read ({type(error).__name__})"))
        return b""
    if len(key) < 16:
        problems.append(Problem("data.patient_key", str(path), "is shorter than 16 bytes; make one of 32 random bytes"))
    return key
