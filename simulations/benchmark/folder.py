"""The folder of a benchmark: one line per finished cell, and the tables and the chart that are made from them.

config.yaml        the resolved settings; the folder accepts a larger grid, but no other settings
cells.jsonl        one line per finished cell, identified by the key of its settings
lock               held by the process that trains, so that a second one is refused; the system frees it at its end
unfinished/        files of the running cells; removed before the first cell and after the last
results.csv        one row per cell and site
gains.csv          per site, federated minus local (of the same row, or of `benchmark.home`); only with `local`
summary.csv        mean and standard deviation over seeds, and the paired difference from the reference
accuracy.png       accuracy against bytes per round
"""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ept_fed.config.diff import compare_settings
from ept_fed.config.experiment import Experiment
from ept_fed.config.yaml_reader import parse_yaml
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.storage.files import append_json_line, dump_json, write_bytes, write_csv, write_text

__all__ = ["SCHEMA", "BenchmarkFolder"]

# Version of a line of cells.jsonl. Increase it if lines of new cells have other fields.
SCHEMA = 2

# Fields that are required to check whether new cells fit the finished ones.
_NEEDED = frozenset({"key", "schema", "backbone", "data", "sources"})


class BenchmarkFolder:
    """Opens and fills one benchmark's folder."""

    def __init__(self, path: Path) -> None:
        """Set the path; nothing is written before `open`."""
        self.path = path

    @property
    def unfinished(self) -> Path:
        """The folder for files of running cells."""
        return self.path / "unfinished"

    def check(self, experiment: Experiment) -> list[Problem]:
        """Return a problem for each setting that differs from the folder's, or one if the folder holds something else.

        Another problem is added if another process is training in the folder.
        """
        return self._check_lock() + self._compare(experiment)

    @contextlib.contextmanager
    def open(self, experiment: Experiment) -> Iterator[dict[str, dict[str, Any]]]:
        """Create or reopen the folder, keep it locked, and yield the finished cells.

        Raises:
            InputRefusedError: if it holds the results of other settings, is in use, or cannot be written.
        """
        problems = self.check(experiment)
        if problems:
            raise InputRefusedError(problems)
        with contextlib.ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                lock = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                stack.callback(os.close, lock)
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Another process may have used the folder since the first check.
                if problems := self._compare(experiment):
                    raise InputRefusedError(problems)
                cells = self.read_cells()
                write_text(self.path / "config.yaml", experiment.to_yaml())
                # Without a partially written last line, to which the next line would be appended.
                write_text(self.path / "cells.jsonl", "".join(dump_json(cell) + "\n" for cell in cells.values()))
            except BlockingIOError as error:
                raise InputRefusedError([self._in_use()]) from error
            except OSError as error:
                fix = f"cannot be written ({error.strerror}); name another folder"
                raise InputRefusedError([Problem("--out", str(self.path), fix)]) from error
            yield cells

    def read_cells(self) -> dict[str, dict[str, Any]]:
        """Return the finished cells by key, without a partially written last line.

        Raises:
            InputRefusedError: if any other line is damaged.
        """
        path = self.path / "cells.jsonl"
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
        try:
            cells = [json.loads(line) for line in lines]
            for cell in cells:
                if lacking := _NEEDED - cell.keys():
                    raise KeyError(f"a line lacks {', '.join(sorted(lacking))}")
                if cell["schema"] != SCHEMA:
                    raise ValueError(f"a line has schema {cell['schema']}, this version of ept-fed has {SCHEMA}")
            return {cell["key"]: cell for cell in cells}
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            fix = f"cannot be used ({type(error).__name__}: {error}); restore it, or name another --out"
            raise InputRefusedError([Problem("cells.jsonl", str(path), fix)]) from error

    def write_cell(self, cell: Mapping[str, Any]) -> None:
        """Append a finished cell's line."""
        append_json_line(self.path / "cells.jsonl", cell)

    def clear_unfinished(self) -> None:
        """Remove the files of unfinished cells."""
        shutil.rmtree(self.unfinished, ignore_errors=True)

    def write_tables(
        self,
        rows: Sequence[Mapping[str, Any]],
        summary: Sequence[Mapping[str, Any]],
        gains: Sequence[Mapping[str, Any]],
        picture: bytes,
    ) -> None:
        """Rewrite results.csv, summary.csv, gains.csv and accuracy.png; without gains, gains.csv is removed."""
        write_csv(self.path / "results.csv", rows, list(rows[0]))
        write_csv(self.path / "summary.csv", summary, list(summary[0]))
        if gains:
            write_csv(self.path / "gains.csv", gains, list(gains[0]))
        else:
            (self.path / "gains.csv").unlink(missing_ok=True)
        write_bytes(self.path / "accuracy.png", picture)

    @property
    def _lock(self) -> Path:
        return self.path / "lock"

    def _compare(self, experiment: Experiment) -> list[Problem]:
        # A name that begins with a dot is a temporary file of an interrupted write.
        held = {path.name for path in self.path.iterdir() if path.name[0] != "."} if self.path.is_dir() else set()
        if not self.path.exists() or (self.path.is_dir() and held <= {"lock"}):
            return []
        try:
            held = parse_yaml((self.path / "config.yaml").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            fix = f"holds something that is no benchmark ({type(error).__name__}: config.yaml); name another folder"
            return [Problem("--out", str(self.path), fix)]
        return [
            Problem(key, ours, f"the results in {self.path} have {theirs}; set it so, or name another --out")
            for key, theirs, ours in compare_settings(held, experiment)
            if not key.startswith("benchmark.")
        ]

    def _check_lock(self) -> list[Problem]:
        """Return a problem if another process holds the lock; no file is created."""
        with contextlib.ExitStack() as stack:
            try:
                lock = os.open(self._lock, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                # The lock does not exist yet, or is not readable; `open` reports the latter.
                return []
            stack.callback(os.close, lock)
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return [self._in_use()]
        return []

    def _in_use(self) -> Problem:
        fix = "is in use: another ept-fed benchmark trains there; wait for it, or name another folder"
        return Problem("--out", str(self.path), fix)
