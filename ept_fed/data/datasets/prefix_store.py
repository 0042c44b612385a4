"""Outputs of the frozen first layers of a backbone, computed once per image and view, and kept at the site.

A row is the output for one view of one image. Rows are kept in memory up to a budget, and then in a file of the site's
cache folder, which later runs read again. Nothing of it is sent or exported.
"""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import torch
from torch import Tensor

__all__ = ["CHUNK", "FrozenPrefix", "PrefixStore"]

# Every forward pass through the prefix has this many images, filled up with zeros. On CPUs, a row then has the same
# bits whichever images are computed with it.
CHUNK = 16

_SCHEMA = 1
_HEADER = 4096
_KEY = 32
_SUM = 16
_KEPT_FILES = 8
_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FrozenPrefix:
    """The first layers of a backbone that no training changes.

    Attributes:
        key: identifies everything that the output depends on except the image: backbone, layers, number type.
        run: (B, 3, S, S) float32 on any device -> (B, …) on the CPU, without a gradient.
    """

    key: str
    run: Callable[[Tensor], Tensor]


@dataclass
class _Rows:
    """The rows of one prefix: in memory, and from the first that did not fit on in a file."""

    memory: dict[bytes, Tensor] = field(default_factory=dict)
    file: "_RowFile | None" = None


class PrefixStore:
    """Rows by prefix and image, for all datasets of a process; threads may share it."""

    def __init__(self, budget: int, folder: Path | None) -> None:
        """Keep at most `budget` bytes in memory and the rest below `folder`; None uses an unnamed temporary file."""
        self._budget, self._folder = budget, folder
        self._used = 0
        self._rows: dict[str, _Rows] = {}
        self._lock = Lock()

    @property
    def used(self) -> int:
        """Bytes in memory."""
        return self._used

    def fetch(self, prefix: FrozenPrefix, keys: Sequence[bytes], draw: Callable[[Sequence[int]], Tensor]) -> Tensor:
        """Return the rows (n, …) of n views of images, in float32; those that are missing are computed.

        Args:
            prefix: the layers.
            keys: 32 bytes per view, the digest of the image and of how the view is made.
            draw: returns the views (m, 3, S, S) with these m positions in `keys`.
        """
        with self._lock:
            rows = self._rows.setdefault(prefix.key, _Rows())
            found = {key: row for key in dict.fromkeys(keys) if (row := self._read(prefix, rows, key)) is not None}
            missing = [place for key, place in {key: at for at, key in enumerate(keys)}.items() if key not in found]
            for start in range(0, len(missing), CHUNK):
                places = missing[start : start + CHUNK]
                for place, row in zip(places, _run_filled(prefix, draw(places)), strict=True):
                    found[keys[place]] = row
                    self._keep(prefix, rows, keys[place], row)
        return torch.stack([found[key] for key in keys]).float()

    def _read(self, prefix: FrozenPrefix, rows: _Rows, key: bytes) -> Tensor | None:
        if (row := rows.memory.get(key)) is not None:
            return row
        if rows.file is None and self._folder is not None:
            rows.file = _RowFile.reopen(self._folder, prefix.key)
        return None if rows.file is None else rows.file.read(key)

    def _keep(self, prefix: FrozenPrefix, rows: _Rows, key: bytes, row: Tensor) -> None:
        if self._has_room(rows, row.nbytes):
            self._used += row.nbytes
            rows.memory[key] = row.clone()
            return
        if rows.file is None:
            rows.file = _RowFile.create(self._folder, prefix.key, row)
        rows.file.write(key, row)

    def _has_room(self, rows: _Rows, size: int) -> bool:
        """Make room by forgetting the rows of prefixes that are not in use now; return whether it suffices."""
        for other in self._rows.values():
            if self._used + size <= self._budget:
                break
            if other is not rows:
                self._used -= sum(row.nbytes for row in other.memory.values())
                other.memory.clear()
        return self._used + size <= self._budget


def _run_filled(prefix: FrozenPrefix, images: Tensor) -> Tensor:
    """Return the rows of at most CHUNK images, computed in a batch of exactly CHUNK."""
    count = len(images)
    if count < CHUNK:
        images = torch.cat([images, images.new_zeros(CHUNK - count, *images.shape[1:])])
    return prefix.run(images)[:count]


class _RowFile:
    """Rows of one prefix in a file: a header, then records of equal size, each with its key and a checksum.

    A record whose checksum is wrong is computed again. A file of another prefix or version, or with a damaged header,
    is replaced, and an unfinished record at its end is cut off; both are logged.
    """

    def __init__(self, file: BinaryIO, shape: tuple[int, ...], kind: torch.dtype) -> None:
        self._file, self._shape, self._kind = file, shape, kind
        self._bytes = torch.empty(shape, dtype=kind).nbytes
        self._record = _KEY + _SUM + self._bytes
        self._places: dict[bytes, int] = {}

    @classmethod
    def reopen(cls, folder: Path, key: str) -> "_RowFile | None":
        """Return the rows that an earlier run left; None if there are none, or if another process uses them."""
        path = folder / _name_of(key)
        try:
            file = path.open("r+b")
        except FileNotFoundError:
            return None
        if not _lock(file):
            file.close()
            return None
        try:
            content = file.read(_HEADER)
            header = json.loads(content)
            if len(content) < _HEADER or (header["schema"], header["prefix"]) != (_SCHEMA, key):
                raise ValueError("it is of another backbone, preprocessing or version")
            rows = cls(file, tuple(header["shape"]), _TYPES[header["type"]])
        except (ValueError, KeyError, TypeError) as error:
            _log.warning("%s cannot be used (%s); it is made again", path, str(error))
            file.close()
            path.unlink()
            return None
        rows._find_records(path)
        return rows

    @classmethod
    def create(cls, folder: Path | None, key: str, like: Tensor) -> "_RowFile":
        """Start a file for rows like this one; if another process holds the file, an unnamed one is used."""
        kind = next(name for name, kind in _TYPES.items() if kind == like.dtype)
        header = {"schema": _SCHEMA, "prefix": key, "shape": list(like.shape), "type": kind}
        file = None if folder is None else _create_locked(folder, _name_of(key))
        if file is None:
            handle, path = tempfile.mkstemp(dir=folder)
            # Without a name, the system removes it with the process.
            Path(path).unlink()
            file = os.fdopen(handle, "r+b")
        file.truncate(0)
        file.write(json.dumps(header).encode().ljust(_HEADER))
        file.flush()
        return cls(file, tuple(like.shape), like.dtype)

    def read(self, key: bytes) -> Tensor | None:
        """Return a row; None if it is not there or damaged."""
        place = self._places.get(key)
        if place is None:
            return None
        record = os.pread(self._file.fileno(), self._record, place)
        content = record[_KEY + _SUM :]
        if len(content) != self._bytes or record[_KEY : _KEY + _SUM] != _checksum(key, content):
            _log.warning("a row of %s is damaged; it is computed again", self._file.name)
            return None
        return torch.frombuffer(bytearray(content), dtype=self._kind).reshape(self._shape)

    def write(self, key: bytes, row: Tensor) -> None:
        """Append a row, or replace a damaged one."""
        content = row.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        place = self._places.get(key, _HEADER + len(self._places) * self._record)
        os.pwrite(self._file.fileno(), key + _checksum(key, content) + content, place)
        self._places[key] = place

    def _find_records(self, path: Path) -> None:
        size = path.stat().st_size - _HEADER
        count, left = divmod(size, self._record)
        if left:
            _log.warning("%s ends within a record, as after a crash; its end is cut off", path)
            self._file.truncate(_HEADER + count * self._record)
        for number in range(count):
            place = _HEADER + number * self._record
            self._places[os.pread(self._file.fileno(), _KEY, place)] = place


def _create_locked(folder: Path, name: str) -> BinaryIO | None:
    """Return an open file of the cache folder; None if another process uses it. Remove files unused for longest."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    others = sorted(
        (path for path in folder.glob("*.rows") if path.name != name), key=lambda path: path.stat().st_mtime
    )
    for path in others[: max(0, len(others) + 1 - _KEPT_FILES)]:
        with path.open("r+b") as unused:
            if _lock(unused):
                path.unlink()
    file = os.fdopen(os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o600), "r+b")
    if _lock(file):
        return file
    file.close()
    return None


def _name_of(key: str) -> str:
    return f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.rows"


def _lock(file: BinaryIO) -> bool:
    try:
        flock(file, LOCK_EX | LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _checksum(key: bytes, content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_SUM, key=key).digest()
