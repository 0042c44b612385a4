"""Partially written lines: the remains of a ledger's last line, kept in a separate file that a later entry names.

ledger.torn-9e0c41d7-42-5f1c2a9be0d3   of entry 42, with the first digits of the ledger's name and the bytes' SHA-256

A partially written line was never complete on the disk, so its message was not processed, and it is not an entry. It is
kept because a cut by somebody who kept an older tip may look the same. The file is on the disk before the ledger is
shortened. So the next start finds a file that no entry names yet, however often the site is interrupted. Everybody who
can write to that folder can put such a file there: a file that does not fit the ledger is skipped, and a file that fits
does not prove a crash.
"""

import hashlib
import logging
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from client.ledger.entry import Entry
from ept_fed.storage.files import sync_folder, write_bytes

__all__ = ["TornLine", "find_unrecorded", "load_torn", "set_aside"]

_log = logging.getLogger(__name__)

_BYTES, _SHA256, _FILE = "torn_bytes", "torn_sha256", "torn_file"
_NUMBER = re.compile(r"\d{1,9}", re.ASCII)
_NAME = re.compile(r"[\w-]+\.torn-[0-9a-f]{8}-(\d{1,9})-([0-9a-f]{12})", re.ASCII)
_SHORT = 12  # digits of the SHA-256 in a file's name
_LEDGER = 8  # digits of the ledger's name in a file's name; a ledger that was begun anew has another name


@dataclass(frozen=True)
class TornLine:
    """A partially written line that was set aside.

    Attributes:
        file: name of its file, in the ledger's folder.
        size: number of bytes.
        sha256: SHA-256 of the bytes.
    """

    file: str
    size: int
    sha256: str

    def describe(self) -> dict[str, str]:
        """Return the `about` of the entry that records it."""
        return {_BYTES: str(self.size), _SHA256: self.sha256, _FILE: self.file}

    def is_kept_beside(self, ledger: Path) -> bool:
        """Tell whether the bytes are still there."""
        path = ledger.with_name(self.file)
        return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == self.sha256


def set_aside(ledger: Path, name: str, number: int, torn: bytes) -> None:
    """Write a partially written entry to its own file and wait for the disk; a repetition changes nothing.

    Args:
        ledger: path of the ledger.
        name: name of the ledger, as in its entries.
        number: sequence number of the entry.
        torn: the bytes of the entry that were written.
    """
    digest = hashlib.sha256(torn).hexdigest()
    write_bytes(ledger.with_name(f"{_prefix(ledger, name)}{number}-{digest[:_SHORT]}"), torn, mode=0o600)
    sync_folder(ledger.parent)


def load_torn(about: Mapping[str, str]) -> TornLine | None:
    """Return the partially written line that an entry's `about` records; None if it records none."""
    size, sha256, file = (about.get(key, "") for key in (_BYTES, _SHA256, _FILE))
    # The ledger may be another site's: its author could have written any text here, including paths.
    if not (_NUMBER.fullmatch(size) and _NAME.fullmatch(file)):
        return None
    return TornLine(file, int(size), sha256)


def find_unrecorded(ledger: Path, name: str, history: Sequence[Entry]) -> list[TornLine]:
    """Return the lines of this ledger that were set aside but that no entry records yet."""
    named = {torn.file for entry in history if (torn := load_torn(entry.about)) is not None}
    paths = sorted(path for path in ledger.parent.glob(f"{_prefix(ledger, name)}*") if path.name not in named)
    read = [(path, _read_torn(path, len(history) + 1)) for path in paths]
    for path, torn in read:
        if torn is None:
            _log.warning("%s is skipped: it is not a partially written line of this ledger", path)
    return [torn for _, torn in read if torn is not None]


def _read_torn(path: Path, maximum: int) -> TornLine | None:
    """Return the partially written line in a file; None if there is none, or its entry number exceeds `maximum`."""
    parts = _NAME.fullmatch(path.name)
    if parts is None or not 1 <= int(parts[1]) <= maximum or not stat.S_ISREG(path.lstat().st_mode):
        return None
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return TornLine(path.name, len(content), digest) if content and digest.startswith(parts[2]) else None


def _prefix(ledger: Path, name: str) -> str:
    return f"{ledger.stem}.torn-{name[:_LEDGER]}-"
