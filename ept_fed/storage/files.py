"""Text, JSON and CSV files, written under a temporary name and then renamed, so that no reader sees a partial file."""

import csv
import io
import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["append_json_line", "dump_json", "sync_folder", "write_bytes", "write_csv", "write_json", "write_text"]


def write_bytes(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Write `content` to `path` atomically; make the folder if needed. With 0o600 no other user can ever read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Wait until the file names in a folder are on disk; without this, a power cut can lose a new or renamed file."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(path, content.encode())


def dump_json(document: Mapping[str, Any], *, indent: int | None = None) -> str:
    """Return a document as JSON; undefined numbers (NaN) become null, as JSON has no NaN."""
    return json.dumps(_without_nan(document), indent=indent, allow_nan=False)


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write one JSON document atomically; see `dump_json`."""
    write_text(path, dump_json(document, indent=2) + "\n")


def append_json_line(path: Path, document: Mapping[str, Any]) -> None:
    """Append one line to a JSON-lines file and flush it to disk; an earlier partial write stays on its own line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
            file.write(b"\n")
        file.write(dump_json(document).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write rows with exactly these columns atomically; a row with other keys raises ValueError."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(columns), extrasaction="raise", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        missing = set(columns) - set(row)
        if missing:
            raise ValueError(f"row lacks {sorted(missing)}")
        writer.writerow(row)
    write_text(path, buffer.getvalue())


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return value
