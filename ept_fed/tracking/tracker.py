"""All trackers of one run; they receive each round, or all rounds from rounds.jsonl, and never stop the run."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from ept_fed.reports.run.round_record import RoundRecord
from ept_fed.tracking.registry import WRITERS
from ept_fed.tracking.scalars import list_result, list_round, tabulate
from ept_fed.tracking.writer import TrackedRun, Writer

__all__ = ["Tracker"]

_log = logging.getLogger(__name__)


class Tracker:
    """Writes each round to every store; if a store fails, a note is reported and the store is not used any more.

    `ept-fed report RUN --format NAME` writes the missing rounds later. Without names the tracker does nothing.
    """

    def __init__(self, names: Sequence[str], folder: Path, on_note: Callable[[str], None]) -> None:
        """Take names of `WRITERS`, an existing run folder and a callback for failures; `start` opens the stores."""
        self._names, self._folder, self._on_note = tuple(dict.fromkeys(names)), folder, on_note
        self._writers: dict[str, Writer] = {}
        self._rounds, self._done = 0, False

    def start(self, run: TrackedRun, rounds: Sequence[RoundRecord] = ()) -> None:
        """Open the stores and write the rounds that a resumed run already has."""
        for name in self._names:
            with self._guard(name):
                self._writers[name] = WRITERS[name].open(self._folder, run)
        for record in rounds:
            self.write_round(record)

    def write_round(self, record: RoundRecord) -> None:
        """Write the numbers of a round to every store."""
        self._rounds = record.round
        for name, writer in list(self._writers.items()):
            with self._guard(name):
                writer.write_round(self._rounds, list_round(record))

    def write_result(self, rows: Sequence[Mapping[str, Any]], *, done: bool) -> None:
        """Write the final table; `done` is False if no round was averaged."""
        self._done = done
        for name, writer in list(self._writers.items()):
            with self._guard(name):
                writer.write_result(self._rounds, list_result(rows), tabulate(rows))

    def __enter__(self) -> "Tracker":
        """Return itself; leaving closes the stores."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the stores; a run that ended with an exception is not marked as done."""
        for name, writer in list(self._writers.items()):
            with self._guard(name):
                writer.close(done=self._done and error is None)

    @contextmanager
    def _guard(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as failure:  # noqa: BLE001 - the run continues whatever exception a store raises
            self._writers.pop(name, None)
            _log.exception("%s failed", name)
            self._on_note(f"{name} is no longer written: {type(failure).__name__}: {failure}")
