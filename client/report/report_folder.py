"""The folder of a site's own report: only its owner has access, and it has no partially written files.

A report is first written next to its folder, then moved into it. Files that a person put into the folder, such as the
signing key of a bundle, are not changed.
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

_ELSEWHERE = "name another folder, or make this one writable for the worker's user"


def check_own_folder(folder: Path, run: str) -> list[Problem]:
    """Return a problem if the folder cannot be written, or is in use for something else than a report on this run."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return [Problem("--out", str(folder), f"cannot be written below {there}; {_ELSEWHERE}")]
    try:
        if RunFolder(folder).is_free():
            return []
        document: Any = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        if document["run"] == run:
            return []
        fix = f"contains a report on run {document['run']}; name another folder"
    except (OSError, ValueError, KeyError, TypeError):
        fix = "exists and contains no report on this run; name another folder"
    return [Problem("--out", str(folder), fix)]


@contextlib.contextmanager
def fill_own_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder for the report, and move its files to `folder` when the report is complete.

    Raises:
        InputRefusedError: if the folder cannot be written.
    """
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A killed report can leave its temporary folder. The caller ensures that no other report is in progress.
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
