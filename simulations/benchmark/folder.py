"""The folder of a benchmark: one line per finished cell, and the table and picture that are made from them.

config.yaml        the resolved settings; a grid that grows may use the folder on, other settings may not
cells.jsonl        one line per finished cell, by the key of its settings
lock               held by the process that trains; a second one is refused. The system takes it back from the dead
unfinished/        what the running cells write; removed when the last ends, and when the first begins
results.csv        one row per cell and site
gains.csv          per site, federated minus local of the same method; if the grid has `local`
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

__all__ = ["BenchmarkFolder"]

# What says whether a cell may be joined by others.
_NEEDED = frozenset({"key", "backbone", "data", "sources"})


class BenchmarkFolder:
    """Opens and fills one benchmark's folder."""

    def __init__(self, path: Path) -> None:
        """Take a path; nothing is written before `open`."""
        self.path = path

    @property
    def unfinished(self) -> Path:
        """Where running cells may write."""
        return self.path / "unfinished"

    def check(self, experiment: Experiment) -> list[Problem]:
        """Return a problem for each setting that is not as in the folder, or one if something else is there.

        A folder that another process is training in is another problem.
        """
        return self._check_lock() + self._compare(experiment)

    @contextlib.contextmanager
    def open(self, experiment: Experiment) -> Iterator[dict[str, dict[str, Any]]]:
        """Make the folder, or take it up again, keep others out of it meanwhile, and yield the finished cells.

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
                # Another process may have come and gone since the first look.
                if problems := self._compare(experiment):
                    raise InputRefusedError(problems)
                cells = self.read_cells()
                write_text(self.path / "config.yaml", experiment.to_yaml())
                # Without a last line that was cut off while it was written: the next would be glued to it.
                write_text(self.path / "cells.jsonl", "".join(dump_json(cell) + "\n" for cell in cells.values()))
            except BlockingIOError as error:
                raise InputRefusedError([self._in_use()]) from error
            except OSError as error:
                fix = f"cannot be written ({error.strerror}); name another folder"
                raise InputRefusedError([Problem("--out", str(self.path), fix)]) from error
            yield cells

    def read_cells(self) -> dict[str, dict[str, Any]]:
        """Return the finished cells by key, without a line that was cut off at the end.

        Raises:
            InputRefusedError: if a line before it is damaged.
        """
        path = self.path / "cells.jsonl"
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
        try:
            cells = [json.loads(line) for line in lines]
            for cell in cells:
                if lacking := _NEEDED - cell.keys():
                    raise KeyError(f"a line lacks {', '.join(sorted(lacking))}")
            return {cell["key"]: cell for cell in cells}
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            fix = f"is damaged ({type(error).__name__}: {error}); restore it, or name another --out"
            raise InputRefusedError([Problem("cells.jsonl", str(path), fix)]) from error

    def write_cell(self, cell: Mapping[str, Any]) -> None:
        """Append a finished cell's line."""
        append_json_line(self.path / "cells.jsonl", cell)

    def clear_unfinished(self) -> None:
        """Remove what cells left behind."""
        shutil.rmtree(self.unfinished, ignore_errors=True)

    def write_tables(
        self,
        rows: Sequence[Mapping[str, Any]],
        summary: Sequence[Mapping[str, Any]],
        gains: Sequence[Mapping[str, Any]],
        picture: bytes,
    ) -> None:
        """Write results.csv, summary.csv, gains.csv and accuracy.png anew; without rows there is no gains.csv."""
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
        # A name that begins with a dot is what a kill left of a file that was being written.
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
        """Return a problem if another process holds the lock; nothing is made."""
        with contextlib.ExitStack() as stack:
            try:
                lock = os.open(self._lock, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                # What cannot be read cannot be written either, and `open` says so.
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
