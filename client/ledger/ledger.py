"""The site's ledger: a file of JSON lines, one per message in or out, hash-chained and signed; it only grows.

A line is on the disk before `append` returns, and nothing is sent or done before that. The tip (`Tip`) is written after
the line, in place and without waiting for the disk, because a second wait per message would take too long. A tip that
is behind the ledger after a power failure can be distinguished from a ledger that somebody shortened.

One process writes at a time: the file is locked while it is open. A ledger that is not sound is not written to. A
partially written last line is set aside (`client.ledger.partial_writes`), and the next entry records that. If a crash
interrupted the writing of the first entry, the ledger is begun again, and its first entry records the remains.
"""

import fcntl
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from client.ledger.crash_recovery import is_unbegun
from client.ledger.entry import (
    FIRST,
    NOTHING,
    TIME_FORMAT,
    Decision,
    Direction,
    Entry,
    Tip,
    hash_line,
    parse_tip,
    sign_entry,
)
from client.ledger.partial_writes import find_unrecorded, set_aside
from client.ledger.verify import PUBLIC_KEY, examine
from ept_fed.pki.signing import fingerprint
from ept_fed.storage.files import sync_folder

__all__ = ["LEFT", "Ledger", "LedgerBrokenError", "LedgerBusyError", "Record", "tip_path"]

LEFT = "left_behind"  # key in the first entry's `about`: the remains of an interrupted beginning
_TIP_BYTES = 512  # one sector, always overwritten as a whole


class LedgerBrokenError(Exception):
    """The ledger was altered, or cannot be read; nothing is appended to it."""


class LedgerBusyError(Exception):
    """Another process is writing this ledger."""


@dataclass(frozen=True)
class Record:
    """A message or note to be recorded; fields as in `Entry`."""

    direction: Direction
    kind: str
    decision: Decision
    policy: str | None = None
    run: str | None = None
    round: int | None = None
    split: str | None = None
    tensors: Sequence[tuple[str, tuple[int, ...]]] = ()
    metrics: Sequence[str] = ()
    images: int | None = None
    bytes: int = 0
    sha256: str | None = None
    rule: str = ""
    reason: str = ""
    about: Mapping[str, str] = field(default_factory=dict)


def tip_path(ledger: Path) -> Path:
    """Return the path of a ledger's tip: ledger.jsonl -> ledger.tip."""
    return ledger.with_suffix(".tip")


class Ledger:
    """The open ledger of one site.

    Attributes:
        history: the entries in the file when it was opened, oldest first.
    """

    def __init__(
        self,
        path: Path,
        key: ec.EllipticCurvePrivateKey,
        *,
        site: str,
        beginning: Mapping[str, str] = MappingProxyType({}),
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Open a ledger, or begin one.

        Args:
            path: path of the ledger; its tip is in the same folder.
            key: the site's private key.
            site: the site's name.
            beginning: additional `about` of the first entry; used only if this call begins the ledger.
            clock: the site's clock.

        Raises:
            LedgerBusyError: if another process has it open.
            LedgerBrokenError: if it is not sound, or was begun with another key.
        """
        self._key, self._clock, self._print = key, clock, fingerprint(key.public_key())
        self._beginning = dict(beginning)
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.history: list[Entry] = []
        self._name, self._sequence, self._totals, self._last = "", 0, NOTHING, FIRST
        fresh = not path.exists() and not tip_path(path).exists()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._tip = -1
        self._unsynced = False  # whether a line was removed that the disk may still hold
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._tip = os.open(tip_path(path), os.O_RDWR | os.O_CREAT, 0o600)
            self._resume(site, fresh)
        except BlockingIOError as error:
            self.close()
            raise LedgerBusyError(f"{path} is open in another process; stop that worker first") from error
        except BaseException:
            self.close()
            raise

    def append(self, record: Record) -> Entry:
        """Write one entry to the disk and return it.

        Raises:
            OSError: if it cannot be written; the recorded action must not happen then.
        """
        if self.closed:
            raise OSError(f"{self.path} is closed, because a line could be neither completed nor removed")
        if self._unsynced:
            self._shorten(os.fstat(self._file).st_size)
        entry = self._compose(record)
        self._write(entry.line)
        self._adopt(entry, hash_line(entry.line))
        self._write_tip()
        return entry

    @property
    def closed(self) -> bool:
        """Whether it accepts no more entries: after `close`, or after a failure that only a restart can repair."""
        return self._file < 0

    def close(self) -> None:
        """Close the files and release the lock."""
        for handle in (self._file, self._tip):
            if handle >= 0:
                os.close(handle)
        self._file = self._tip = -1

    def _compose(self, record: Record) -> Entry:
        totals = self._totals.plus(record.direction, record.decision, record.bytes)
        unsigned = Entry(
            ledger=self._name,
            sequence=self._sequence + 1,
            time=self._clock().astimezone(UTC).strftime(TIME_FORMAT),
            direction=record.direction,
            kind=record.kind,
            run=record.run,
            round=record.round,
            split=record.split,
            tensors=tuple((name, tuple(shape)) for name, shape in record.tensors),
            metrics=tuple(record.metrics),
            images=record.images,
            bytes=record.bytes,
            sha256=record.sha256,
            policy=record.policy,
            decision=record.decision,
            rule=record.rule,
            reason=record.reason,
            about=dict(record.about),
            totals=totals,
            key=self._print,
            previous=self._last,
        )
        return sign_entry(unsigned, self._key)

    def _resume(self, site: str, fresh: bool) -> None:
        """Begin the ledger, or continue after its last entry; record the remains of an interruption, if any."""
        content, tip = self.path.read_bytes(), tip_path(self.path).read_bytes()
        if is_unbegun(content, tip, self._key.public_key()):
            left = f"{len(content)} bytes of a ledger and {len(tip)} of a tip were found, but no complete entry"
            self._begin(site, content, tip, self._beginning if fresh else {**self._beginning, LEFT: left})
            self._note_torn()
            return
        found = examine(content, tip, self._key.public_key())
        if not found.sound:
            raise LedgerBrokenError(
                f"{self.path} is not sound; {found.findings[0]}. Keep it and its tip as they are, find out who altered "
                "them, and move both aside to begin a new one: ept-fed audit begin"
            )
        self.history = found.entries
        self._adopt(found.entries[-1], found.last)
        if found.torn:
            set_aside(self.path, self._name, self._sequence + 1, content[-found.torn :])
            self._shorten(len(content) - found.torn)
        self._note_torn()
        if found.unconfirmed:
            reason = "the worker was interrupted between an entry and its tip"
            about = {"unconfirmed_entries": str(found.unconfirmed)}
            self.append(Record("site", "recovered", "noted", reason=reason, about=about))

    def _note_torn(self) -> None:
        """Record the partial writes that were set aside, now or before another interruption."""
        reason = "the worker was interrupted while it wrote a line; the message of that line was not processed"
        for torn in find_unrecorded(self.path, self._name, self.history):
            self.append(Record("site", "recovered", "noted", reason=reason, about=torn.describe()))

    def _begin(self, site: str, content: bytes, tip: bytes, said: Mapping[str, str]) -> None:
        """Write the tip and then the first entry, so that an emptied ledger never looks like one that is not yet begun.

        The names of both files are on the disk before the entry; otherwise a power failure could remove the files with
        all later entries.
        """
        earlier = parse_tip(tip)
        # The name in a partially written first line: the new tip must fit it until that line is removed.
        self._name = secrets.token_hex(16) if earlier is None else earlier.ledger
        if content.strip(b"\0"):
            set_aside(self.path, self._name, 1, content)
        self._shorten(0)
        pem = self._key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        about = {"site": site, PUBLIC_KEY: pem.decode(), **said}
        first = self._compose(Record("site", "opened", "noted", reason="the ledger begins", about=about))
        self._adopt(first, hash_line(first.line))
        self._write_tip()
        os.fsync(self._tip)
        for folder in (self.path.parent, self.path.parent.parent):
            sync_folder(folder)
        self._write(first.line)

    def _adopt(self, latest: Entry, last: str) -> None:
        self._name, self._sequence, self._last = latest.ledger, latest.sequence, last
        self._totals = latest.totals

    def _write(self, line: bytes) -> None:
        """Write a line and wait for the disk; a line that is cut short by a full disk is removed."""
        before = os.fstat(self._file).st_size
        content = line + b"\n"
        try:
            if os.write(self._file, content) != len(content):
                raise OSError(f"{self.path}: only part of an entry could be written; free some disk space")
            os.fsync(self._file)
        except OSError:
            try:
                os.ftruncate(self._file, before)
                self._unsynced = True
            except OSError:
                # Another entry after the partial line would break the chain; the next start repairs the file.
                self.close()
            raise

    def _shorten(self, size: int) -> None:
        """Cut the file and wait for the disk; otherwise a power failure may mix old sectors with the next line's."""
        os.ftruncate(self._file, size)
        os.fsync(self._file)
        self._unsynced = False

    def _write_tip(self) -> None:
        tip = sign_entry(Tip(ledger=self._name, sequence=self._sequence, last=self._last), self._key)
        if os.pwrite(self._tip, tip.line.ljust(_TIP_BYTES - 1) + b"\n", 0) != _TIP_BYTES:
            raise OSError(f"{tip_path(self.path)}: only part of the tip could be written; free some disk space")
