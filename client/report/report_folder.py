"""The folder of a site's own report: for its owner's eyes alone, and each file in it whole.

A report is written beside its folder first. What a person put into the folder, such as a bundle's signing key, stays.
"""

import contextlib
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ept_fed.errors import InputRefusedError, Problem
from ept_fed.reports.run.run_folder import RunFolder

__all__ = ["check_own_folder", "fill_own_folder"]

_ELSEWHERE = "name another folder, or make this one for the user whom the worker runs as"


def check_own_folder(folder: Path, run: str) -> list[Problem]:
    """Return a problem if the folder holds anything but an earlier report on this run, or cannot be written."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return [Problem("--out", str(folder), f"cannot be written below {there}; {_ELSEWHERE}")]
    try:
        if RunFolder(folder).is_free():
            return []
        document: Any = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        if document["run"] == run:
            return []
        fix = f"holds a report on run {document['run']}; name another folder"
    except (OSError, ValueError, KeyError, TypeError):
        fix = "is there and holds no report on this run; name another folder"
    return [Problem("--out", str(folder), fix)]


@contextlib.contextmanager
def fill_own_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to write the report into, and move its files to their places once it is written.

    Raises:
        InputRefusedError: if nothing can be written there.
    """
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # What a killed report left behind; the caller sees to it that no other is being made.
        for left in folder.parent.glob(f".{glob.escape(folder.name)}.report-*"):
            shutil.rmtree(left)
        staged = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.report-"))
    except OSError as error:
        fix = f"cannot be written ({error.strerror}); {_ELSEWHERE}"
        raise InputRefusedError([Problem("--out", str(folder), fix)]) from error
    try:
        yield staged
        _move(staged, folder)
    finally:
        shutil.rmtree(staged)


def _move(staged: Path, folder: Path) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    for path in sorted(staged.rglob("*")):
        target = folder / path.relative_to(staged)
        if path.is_dir():
            target.mkdir(mode=0o700, exist_ok=True)
        else:
            path.chmod(0o600)
            os.replace(path, target)
