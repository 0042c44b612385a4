"""Processes that train a benchmark's cells in parallel; their parent distributes the cells and collects the outcomes.

`concurrent.futures` does not fit. It would give any cell to any process, so that each loads every seed's images. It
gives up all processes when one dies, and before Python 3.14 it cannot end them during a cell. Here each process has its
own pipe.
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

# Importing torch takes seconds, and a worker must start to watch its parent before that.
if TYPE_CHECKING:
    from simulations.benchmark.cell import Outcome

__all__ = ["CellQueue", "CellWorkers"]


class CellQueue:
    """Waiting cells, in groups that share images and backbone; the worker with a group's images gets its next cell."""

    def __init__(self, cells: Iterable[tuple[str, Cell]]) -> None:
        """Add the cells in their order, each with the name of its group."""
        self._waiting: dict[str, list[Cell]] = {}
        for name, cell in cells:
            self._waiting.setdefault(name, []).append(cell)

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def take(self, held: str | None, others: Collection[str]) -> tuple[str, Cell] | None:
        """Return the next cell for a worker, with the name of its group; None if no cell waits.

        Args:
            held: the group whose images the worker holds.
            others: groups whose images other workers hold. The first group that no worker holds comes next. If there
                is none, the images of the group with most remaining cells are loaded once more.
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
    """The worker processes, from `__enter__` to `__exit__`, which ends them even during a cell.

    If a process dies, the cell that it was training is lost. The process is not replaced, because the cause (usually a
    lack of memory) would also end the next one. The other processes train the remaining cells.
    """

    def __init__(self, jobs: int, threads: int, out: Path, scratch: Path) -> None:
        """Set the number of processes and their threads; nothing is started yet.

        Args:
            jobs: number of processes.
            threads: number of threads per process.
            out: the benchmark's folder, for the features of analysed cells.
            scratch: folder in which each process creates its own folder.
        """
        self._jobs, self._threads, self._out, self._scratch = jobs, threads, out, scratch
        self._processes: dict[Connection, BaseProcess] = {}

    @property
    def alive(self) -> int:
        """Number of processes that have not died."""
        return len(self._processes)

    def __enter__(self) -> Self:
        # Not forked: a copy of a process that has used threads or a GPU may deadlock.
        context = multiprocessing.get_context("spawn")
        try:
            with _deaf_children():
                for number in range(1, self._jobs + 1):
                    ours, theirs = context.Pipe()
                    arguments = (theirs, self._threads, self._out, self._scratch / str(number))
                    process = context.Process(target=_serve, args=arguments, name=f"benchmark {number}", daemon=True)
                    process.start()
                    self._processes[ours] = process
                    # The pipe must close when the process ends.
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
        """Yield each cell with its outcome when it ends; its worker has the next cell by then.

        Args:
            cells: to train.
            looks: keys of the cells whose features are stored.
            progress: receives the cells' notes.
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
                # A dead worker is detected below, where its answer is received.
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
            progress.on_note(f"{len(queue)} cells were not started, as no process is left; repeat the command")

    def _bury(self, worker: Connection) -> str:
        """Remove a process that died, and return a sentence about the cause."""
        process = self._processes.pop(worker)
        worker.close()
        process.join()
        code = process.exitcode or 0
        ended = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"its process {ended}; if memory was low, use fewer --jobs; repeat the command to train it"

    def _end(self) -> None:
        for process in self._processes.values():
            process.kill()
        for worker, process in self._processes.items():
            process.join()
            worker.close()
        self._processes.clear()


@contextlib.contextmanager
def _deaf_children() -> Iterator[None]:
    """Start processes that ignore Ctrl-C, which reaches every process of a terminal; their parent ends them."""
    # The tracker unblocks the signal when it starts, and without this line it would start with the first process.
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
    """Train the cells that arrive through the pipe until its other end is closed."""
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
    """End this process, even during a cell, as soon as its parent has ended for any reason."""
    process = multiprocessing.parent_process()
    if process is not None:
        process.join()
        os._exit(1)
