"""`ept-fed benchmark --jobs`: same numbers as one process, no cell lost or trained twice, no remaining process."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ept_fed.config.benchmark_cell import Cell
from ept_fed.config.experiment import Experiment
from ept_fed.errors import InputRefusedError
from ept_fed.progress import Silent
from ept_fed.services.processes import end_marked, find_marked
from simulations.benchmark.folder import BenchmarkFolder
from simulations.benchmark.grid import list_cells
from simulations.benchmark.run import benchmark
from simulations.benchmark.workers import CellQueue, CellWorkers
from tests.simulations.benchmark.test_run import table

Micro = Callable[..., Experiment]
GRID = (
    "federation.rounds=1",
    "data.phantom_sites=2",
    "benchmark.seeds=[0, 1]",
    "benchmark.methods=[ept]",
    "benchmark.settings=[local, federated]",
    "training.precision=float32",
    # Fewer test images than there are, which is a note.
    "data.test_shots=3",
)
MARK = "EPT_FED_TEST_OF_JOBS"


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def on_note(self, sentence: str) -> None:
        self.notes.append(sentence)


class KillOne(Notes):
    """Kills a training process when the first cell is reported; by then the other process has its next cell."""

    def on_note(self, sentence: str) -> None:
        super().on_note(sentence)
        if sentence.startswith("1/"):
            first, *_ = multiprocessing.active_children()
            assert first.pid is not None
            os.kill(first.pid, signal.SIGKILL)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "cells.jsonl").read_text().splitlines()]


def timeless(folder: Path) -> list[dict[str, str]]:
    return [row | {"cell_seconds": ""} for row in table(folder / "results.csv")]


@pytest.mark.integration
def test_two_processes_one_of_them_killed_give_the_numbers_of_none(micro: Micro, tmp_path: Path) -> None:
    alone, apart = tmp_path / "alone", tmp_path / "apart"
    assert benchmark(micro(*GRID), alone, Silent(), analyse=True)["trained"] == 4
    watcher = KillOne()
    report = benchmark(micro(*GRID), apart, watcher, analyse=True, jobs=2)
    assert multiprocessing.active_children() == []
    assert (report["status"], report["trained"]) == ("failed", 3)
    (lost,) = (note for note in watcher.notes if "not trained" in note)
    assert "its process was killed by SIGKILL" in lost
    thinned = [note.split(" is tested on ")[0] for note in watcher.notes if " is tested on " in note]
    assert thinned == ["site-1", "site-2"], "what the data lack is said once for all cells and processes"
    numbers = [int(note.split("/")[0]) for note in watcher.notes if "/4 " in note]
    assert numbers == list(range(1, 5))
    before = (apart / "cells.jsonl").read_bytes()
    report = benchmark(micro(*GRID), apart, Silent(), analyse=True)
    assert (report["status"], report["trained"]) == ("done", 1)
    assert (apart / "cells.jsonl").read_bytes().startswith(before)
    assert len(lines(apart)) == len({line["key"] for line in lines(apart)}) == 4
    assert timeless(apart) == timeless(alone)
    for name in ("analysis.csv", "gains.csv", "analysis.html"):
        assert (apart / name).read_bytes() == (alone / name).read_bytes()
    assert not (apart / "unfinished").exists()


@pytest.fixture
def _heeds_interrupts() -> Iterator[None]:
    """Restore the handler of Ctrl-C, because background jobs of a shell and their child processes ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_heeds_interrupts")
@pytest.mark.parametrize(
    "ended",
    [
        pytest.param(signal.SIGINT, marks=pytest.mark.integration),
        pytest.param(signal.SIGKILL, marks=pytest.mark.faults),
    ],
)
def test_a_folder_takes_one_benchmark_and_its_end_leaves_no_process_and_every_finished_cell(
    ended: signal.Signals, micro_file: Path, micro: Micro, tmp_path: Path
) -> None:
    out, mark = tmp_path / "results", f"{os.getpid()}-{ended.name}"
    # The work takes minutes, so that the refusal comes long before the last cell, even on a busy machine.
    longer = (*GRID, "federation.rounds=20")
    many = (*longer, f"benchmark.seeds={list(range(12))}")
    grid = [f"--set={setting}" for setting in many]
    command = [sys.executable, "-m", "ept_fed.cli", "benchmark", str(micro_file), *grid, f"--out={out}", "--jobs=2"]
    another = micro(*longer, "benchmark.seeds=[0]")
    process = subprocess.Popen(
        command, env={**os.environ, MARK: mark}, start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    try:
        while not (out / "cells.jsonl").exists() or not lines(out):
            assert process.poll() is None
            time.sleep(0.05)
        # Four processes: the command, the tracker of its semaphores, and two training processes.
        assert len(find_marked(MARK, mark)) == 4
        with pytest.raises(InputRefusedError, match="is in use: another ept-fed benchmark trains there") as refusal:
            benchmark(another, out, Silent())
        assert [problem.field for problem in refusal.value.problems] == ["--out"]
        # Ctrl-C in a terminal reaches every process. A kill reaches only the command.
        (os.killpg if ended is signal.SIGINT else os.kill)(process.pid, ended)
        _, said = process.communicate(timeout=60)
        assert "Traceback" not in said
        end = time.monotonic() + 60
        while find_marked(MARK, mark) and time.monotonic() < end:
            time.sleep(0.05)
        assert find_marked(MARK, mark) == []
    finally:
        end_marked(MARK, mark)
        process.wait()
    with BenchmarkFolder(out).open(micro(*many)) as finished:
        assert set(finished) == {line["key"] for line in lines(out)}
    assert 1 <= len(finished) < 24


@pytest.mark.integration
def test_an_error_in_the_parent_leaves_no_process(tmp_path: Path) -> None:
    workers = CellWorkers(2, 1, tmp_path, tmp_path / "unfinished")
    with pytest.raises(KeyboardInterrupt), workers:
        assert len(multiprocessing.active_children()) == workers.alive == 2
        raise KeyboardInterrupt
    assert multiprocessing.active_children() == []


@pytest.mark.integration
def test_when_every_process_is_dead_the_rest_is_said_to_wait(micro: Micro, tmp_path: Path) -> None:
    cells, watcher = list_cells(micro(*GRID)), Notes()
    with CellWorkers(1, 1, tmp_path, tmp_path / "unfinished") as workers:
        for process in multiprocessing.active_children():
            process.kill()
        ((cell, outcome),) = workers.train(cells, (), watcher)
        assert (cell, outcome.line, workers.alive) == (cells[0], None, 0)
    assert watcher.notes == ["3 cells were not started, as no process is left; repeat the command"]


def test_a_folder_that_a_killed_benchmark_left_with_its_lock_only_is_taken_up(micro: Micro, tmp_path: Path) -> None:
    folder = BenchmarkFolder(tmp_path / "results")
    folder.path.mkdir()
    (folder.path / "lock").touch()
    with folder.open(micro(*GRID)) as finished:
        assert finished == {}
        with pytest.raises(InputRefusedError, match="is in use"), BenchmarkFolder(folder.path).open(micro(*GRID)):
            pass
    assert folder.check(micro(*GRID)) == []


@given(
    groups=st.lists(st.integers(min_value=1, max_value=9), min_size=1, max_size=6),
    workers=st.integers(min_value=1, max_value=8),
    data=st.data(),
)
def test_every_cell_is_handed_out_once_and_images_are_loaded_anew_only_for_want_of_others(
    groups: list[int], workers: int, data: st.DataObject
) -> None:
    cells = [
        (f"group {group}", f"cell {group}.{number}") for group, size in enumerate(groups) for number in range(size)
    ]
    queue = CellQueue(cells)  # type: ignore[arg-type]
    held: dict[int, str] = {}
    handed: list[tuple[str, Cell]] = []
    loaded = 0
    while queue:
        worker = data.draw(st.integers(min_value=0, max_value=workers - 1))
        taken = queue.take(held.get(worker), {name for other, name in held.items() if other != worker})
        assert taken is not None
        loaded += held.get(worker) != taken[0]
        handed.append(taken)
        held[worker] = taken[0]
    assert queue.take(None, ()) is None
    assert sorted(handed) == sorted(cells)  # type: ignore[type-var]
    if workers == 1:
        assert (handed, loaded) == (cells, len(groups))
