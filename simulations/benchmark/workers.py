"""Processes that train a benchmark's cells side by side; their parent hands the cells out and keeps what comes back.

`concurrent.futures` would hand any cell to any process, so that each loads every seed's images; it gives up all
processes when one dies, and before Python 3.14 it cannot end them in the middle of a cell. Here each has its own pipe.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Collection, Iterable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ept_fed.config.benchmark_cell import Cell
from ept_fed.progress import Progress, Silent

# A worker watches for its parent's end before it spends seconds on importing torch.
if TYPE_CHECKING:
    from simulations.benchmark.cell import Outcome

__all__ = ["CellQueue", "CellWorkers"]


class CellQueue:
    """Cells that wait, in groups that share images and backbone: who holds a group's images gets its next cell."""

    def __init__(self, cells: Iterable[tuple[str, Cell]]) -> None:
        """Take the cells in their order, each with the name of its group: of what it shares with others."""
        self._waiting: dict[str, list[Cell]] = {}
        for name, cell in cells:
            self._waiting.setdefault(name, []).append(cell)

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def take(self, held: str | None, others: Collection[str]) -> tuple[str, Cell] | None:
        """Return the next cell for a worker, with the name of its group; None if none waits.

        Args:
            held: the group whose images the worker holds.
            others: the groups that other workers hold. The first that nobody holds comes next; where there is none,
                the one with most cells left is worth a second loading of its images.
        """
        if not self._waiting:
            return None
        free = [name for name in self._waiting if name not in others]
        if held is not None and held in self._waiting:
            name = held
        elif free:
            name = free[0]
        else:
            name = max(self._waiting, key=lambda group: len(self._waiting[group]))
        cell = self._waiting[name].pop(0)
        if not self._waiting[name]:
            del self._waiting[name]
        return name, cell


class CellWorkers:
    """The processes, from `__enter__` to `__exit__`, which ends them wherever they are.

    A process that dies takes the cell that it was training with it, and is not replaced: what killed it (as a rule,
    want of memory) would kill the next. The others go on with its share.
    """

    def __init__(self, jobs: int, threads: int, out: Path, scratch: Path) -> None:
        """Say how many processes compute on how many threads each; nothing is started yet.

        Args:
            jobs: processes.
            threads: of each.
            out: the benchmark's folder, for the features of analysed cells.
            scratch: each process makes a folder of its own in it.
        """
        self._jobs, self._threads, self._out, self._scratch = jobs, threads, out, scratch
        self._processes: dict[Connection, BaseProcess] = {}

    @property
    def alive(self) -> int:
        """How many processes have not died."""
        return len(self._processes)

    def __enter__(self) -> Self:
        # Not forked: a copy of a process that has used threads, or a GPU, may wait for ever.
        context = multiprocessing.get_context("spawn")
        try:
            with _deaf_children():
                for number in range(1, self._jobs + 1):
                    ours, theirs = context.Pipe()
                    arguments = (theirs, self._threads, self._out, self._scratch / str(number))
                    process = context.Process(target=_serve, args=arguments, name=f"benchmark {number}", daemon=True)
                    process.start()
                    self._processes[ours] = process
                    # The pipe must end when the process does.
                    theirs.close()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def train(
        self, cells: Iterable[Cell], looks: Collection[str], progress: Progress
    ) -> Iterator[tuple[Cell, "Outcome"]]:
        """Yield each cell with its outcome as it ends; a worker has its next cell by then.

        Args:
            cells: what to train.
            looks: keys of the cells whose features are kept.
            progress: told the cells' notes.
        """
        from simulations.benchmark.cell import Outcome
        from simulations.benchmark.provenance import name_sources

        queue = CellQueue((name_sources(cell), cell) for cell in cells)
        held: dict[Connection, str] = {}
        running: dict[Connection, Cell] = {}

        def hand_out(worker: Connection) -> None:
            taken = queue.take(held.get(worker), {group for other, group in held.items() if other is not worker})
            if taken is not None:
                held[worker], running[worker] = taken
                # A worker that has died is noticed where its answer is awaited.
                with contextlib.suppress(OSError):
                    worker.send((running[worker], running[worker].key in looks))

        for worker in self._processes:
            hand_out(worker)
        while running:
            ready = wait(list(running))
            for worker in [one for one in running if one in ready]:
                try:
                    told = worker.recv()
                except (EOFError, OSError):
                    del held[worker]
                    yield running.pop(worker), Outcome(None, self._bury(worker), 0.0)
                    continue
                if isinstance(told, str):
                    progress.on_note(told)
                    continue
                cell = running.pop(worker)
                hand_out(worker)
                yield cell, told
        if queue:
            progress.on_note(f"{len(queue)} cells were not begun, because no process is left; the same command goes on")

    def _bury(self, worker: Connection) -> str:
        """Forget a process that died, and return what is known about it."""
        process = self._processes.pop(worker)
        worker.close()
        process.join()
        code = process.exitcode or 0
        ended = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"its process {ended}; if memory was short, take fewer --jobs; the same command trains it"

    def _end(self) -> None:
        for process in self._processes.values():
            process.kill()
        for worker, process in self._processes.items():
            process.join()
            worker.close()
        self._processes.clear()


@contextlib.contextmanager
def _deaf_children() -> Iterator[None]:
    """Start processes that Ctrl-C, which reaches every process of a terminal, leaves to their parent to end."""
    # It unblocks the signal when it first runs, which would be when the first process starts.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Relay(Silent):
    """Sends notes to the parent."""

    def __init__(self, parent: Connection) -> None:
        self._parent = parent

    def on_note(self, sentence: str) -> None:
        """Send the note."""
        self._parent.send(sentence)


def _serve(parent: Connection, threads: int, out: Path, scratch: Path) -> None:
    """Train what comes through the pipe until nobody is at its other end."""
    threading.Thread(target=_end_with_parent, daemon=True).start()

    import torch

    from simulations.benchmark.analysis.folder import AnalysisFolder
    from simulations.benchmark.cell import CellTrainer

    logging.getLogger("flwr").setLevel(logging.WARNING)
    torch.set_num_threads(threads)
    trainer = CellTrainer(scratch, AnalysisFolder(out))
    while True:
        try:
            cell, look = parent.recv()
        except (EOFError, OSError):
            return
        outcome = trainer.train(cell, _Relay(parent), look=look)
        with contextlib.suppress(OSError):
            parent.send(outcome)


def _end_with_parent() -> None:
    """End this process, in the middle of a cell or not, when its parent is gone, killed or not."""
    process = multiprocessing.parent_process()
    if process is not None:
        process.join()
        os._exit(1)
