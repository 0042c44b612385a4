"""Torn lines: what an interruption left of a ledger's last line, kept beside it and named by a later entry.

ledger.torn-9e0c41d7-42-5f1c2a9be0d3   of entry 42; the ledger's own name and the bytes' SHA-256 begin like this

A torn line was never whole on the disk, so nothing was done about its message, and it is no entry. It is kept because
a cut by somebody who kept an older tip may look the same. The file is on the disk before the ledger is shortened, so
the next start finds one that no entry names yet, however often the site is interrupted. Whoever can write to that
folder can put there what looks like one: what does not fit the ledger is passed over, what fits proves no crash.
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
_SHORT = 12  # of a digest in a file's name
_LEDGER = 8  # of the ledger's own name there: one that was begun anew has no part in it


@dataclass(frozen=True)
class TornLine:
    """What was torn off.

    Attributes:
        file: its name, beside the ledger.
        size: in bytes.
        sha256: of the bytes.
    """

    file: str
    size: int
    sha256: str

    def describe(self) -> dict[str, str]:
        """Return it as the `about` of the entry that records it."""
        return {_BYTES: str(self.size), _SHA256: self.sha256, _FILE: self.file}

    def is_kept_beside(self, ledger: Path) -> bool:
        """Tell whether the bytes are still there."""
        path = ledger.with_name(self.file)
        return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == self.sha256


def set_aside(ledger: Path, name: str, number: int, torn: bytes) -> None:
    """Keep what an interruption left of an entry, on the disk when this returns; to do it again changes nothing.

    Args:
        ledger: the ledger's path.
        name: the ledger's own, which its entries share.
        number: of the entry.
        torn: what there is of it.
    """
    digest = hashlib.sha256(torn).hexdigest()
    write_bytes(ledger.with_name(f"{_prefix(ledger, name)}{number}-{digest[:_SHORT]}"), torn, mode=0o600)
    sync_folder(ledger.parent)


def load_torn(about: Mapping[str, str]) -> TornLine | None:
    """Return the torn line that an entry's `about` records; None if it records none."""
    size, sha256, file = (about.get(key, "") for key in (_BYTES, _SHA256, _FILE))
    # Whoever verifies another's ledger reads what its key's holder wrote, paths and all.
    if not (_NUMBER.fullmatch(size) and _NAME.fullmatch(file)):
        return None
    return TornLine(file, int(size), sha256)


def find_unrecorded(ledger: Path, name: str, history: Sequence[Entry]) -> list[TornLine]:
    """Return what of the ledger of this name was set aside and no entry records yet."""
    named = {torn.file for entry in history if (torn := load_torn(entry.about)) is not None}
    paths = sorted(path for path in ledger.parent.glob(f"{_prefix(ledger, name)}*") if path.name not in named)
    read = [(path, _read_torn(path, len(history) + 1)) for path in paths]
    for path, torn in read:
        if torn is None:
            _log.warning("%s is passed over: no torn line of this ledger is like this", path)
    return [torn for _, torn in read if torn is not None]


def _read_torn(path: Path, maximum: int) -> TornLine | None:
    """Return what a file holds of a torn line, which is of entry `most` or one before; None if it holds none."""
    parts = _NAME.fullmatch(path.name)
    if parts is None or not 1 <= int(parts[1]) <= maximum or not stat.S_ISREG(path.lstat().st_mode):
        return None
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return TornLine(path.name, len(content), digest) if content and digest.startswith(parts[2]) else None


def _prefix(ledger: Path, name: str) -> str:
    return f"{ledger.stem}.torn-{name[:_LEDGER]}-"
