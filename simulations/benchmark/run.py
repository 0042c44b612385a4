"""`ept-fed benchmark`: methods × shots × samplings × seeds × settings; each cell is trained once, some in parallel."""

import contextlib
import logging
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ept_fed.config.benchmark_cell import Cell
from ept_fed.config.experiment import Experiment
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.evaluation.benchmark_summary import POOLED_METRICS, choose_home, compare_with_local, summarise
from ept_fed.progress import Progress, Silent
from ept_fed.reports.run.comparison import METRICS
from ept_fed.training.precision import settle_precision
from simulations.benchmark.analysis.folder import AnalysisFolder
from simulations.benchmark.cell import VALIDATION_METRICS, CellTrainer, Outcome
from simulations.benchmark.chart import draw_benchmark
from simulations.benchmark.checks import check_cells, check_sources
from simulations.benchmark.folder import BenchmarkFolder
from simulations.benchmark.selection import Request, choose_analysed, find_unlike, resolve_request
from simulations.benchmark.workers import CellWorkers

__all__ = ["benchmark"]

_UNDEFINED = float("nan")


class _Once(Silent):
    """Forwards each note only once, because cells of the same data repeat its notes in every process."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._said = progress, set[str]()

    def on_note(self, sentence: str) -> None:
        """Forward the note, unless it was forwarded before."""
        if sentence not in self._said:
            self._said.add(sentence)
            self._progress.on_note(sentence)


def benchmark(
    experiment: Experiment,
    out: Path,
    progress: Progress,
    *,
    methods: Sequence[str] = (),
    settings: Sequence[str] = (),
    analyse: bool = False,
    jobs: int = 1,
) -> Mapping[str, Any]:
    """Train the requested cells that the folder lacks, and write the tables of the whole grid.

    Args:
        experiment: validated settings; `benchmark` is the grid.
        out: a new folder, or the folder of an earlier benchmark with the same settings, which is continued.
        progress: receives a note when each cell ends, with the remaining time.
        methods: rows to train now, by name or pattern, in the grid or not; empty trains the grid's.
        settings: settings to train now, in the grid or not; empty trains the grid's.
        analyse: also analyse the features of one cell per requested method, see `choose_analysed`. A finished cell
            whose features were not stored is trained again for this.
        jobs: number of cells that train in parallel, each in a process with its share of this one's threads and with
            its own copy of images and backbone; 1 trains in this process. Equal threads per cell give equal numbers.

    Returns:
        Of the requested cells: `status` ("failed" if any cell averaged nothing or was not trained), `cells`, `trained`
        (in this call), `analysis` (the page, or None). Of all finished cells of the grid: `summary`. Also `folder`.

    Raises:
        InputRefusedError: with every problem of grid, data, models and folder, before the first cell.
    """
    logging.getLogger("flwr").setLevel(logging.WARNING)
    folder = BenchmarkFolder(out)
    problems = folder.check(settle_precision(experiment))
    try:
        request = resolve_request(experiment, methods, settings)
    except InputRefusedError as refusal:
        raise InputRefusedError([*problems, *refusal.problems]) from refusal
    if problems:
        raise InputRefusedError(problems)
    experiment = settle_precision(request.experiment)
    # The precision depends on the cell, as a variant may have another device.
    cells, asked = ([_settle(cell) for cell in some] for some in (request.cells, request.asked))
    finished = folder.read_cells()
    analysis = AnalysisFolder(out)
    analysed = choose_analysed(asked, experiment.benchmark.settings) if analyse else ()
    unlike = find_unlike(analysed)
    analysed = tuple(cell for cell in analysed if cell.method not in unlike)
    if damaged := analysis.check(analysed):
        raise InputRefusedError(damaged)
    unseen = {cell.key for cell in analysed if not analysis.holds(cell.key)}
    missing = _list_missing(asked, finished, unseen)
    trainer = CellTrainer(folder.unfinished, analysis)
    check_cells(missing, trainer, unseen)
    check_sources(cells, missing, finished, trainer, out)
    with folder.open(experiment) as before:
        missing = _list_missing(asked, before, unseen)
        folder.clear_unfinished()
        try:
            trained = _train(missing, before, unseen, trainer, folder, progress, jobs)
        finally:
            folder.clear_unfinished()
            finished = folder.read_cells()
            rows = _list_rows([cell for cell in cells if cell.key in finished], finished, experiment.benchmark.home)
            summary = summarise(rows, experiment.benchmark.reference)
            if rows:
                folder.write_tables(rows, summary, compare_with_local(choose_home(rows)), draw_benchmark(summary))
        if not rows:
            fix = "no cell could be trained; see the notes above"
            raise InputRefusedError([Problem("benchmark", len(asked), fix)])
        page = _write_analysis(analysis, analysed, unlike, request, finished, progress) if analyse else None
    failed = any(cell.key not in finished or finished[cell.key]["status"] == "failed" for cell in asked)
    return {
        "status": "failed" if failed else "done",
        "cells": len(asked),
        "trained": trained,
        "summary": summary,
        "folder": str(out),
        "analysis": page,
    }


def _settle(cell: Cell) -> Cell:
    return replace(cell, experiment=settle_precision(cell.experiment))


def _list_missing(cells: Sequence[Cell], finished: Mapping[str, Any], unseen: Collection[str]) -> list[Cell]:
    """Return the cells to train; rows with the same settings share one training, and a choice trains its parts.

    A finished cell is trained again if its features are requested but were not stored, unless it averaged nothing.
    """
    again = {key for key in unseen if key in finished and finished[key]["status"] != "failed"}
    missing = {cell.key: cell for cell in cells if cell.key not in finished or cell.key in again}
    parts = {part.key for cell in missing.values() for part in cell.parts} - set(unseen)
    return [cell for key, cell in missing.items() if key not in parts]


def _train(
    cells: Sequence[Cell],
    finished: Collection[str],
    unseen: Collection[str],
    trainer: CellTrainer,
    folder: BenchmarkFolder,
    progress: Progress,
    jobs: int,
) -> int:
    """Train the cells, in this process or in others, and write the lines of those that were not finished before.

    Returns:
        Number of cells that were trained to the end.
    """
    progress, trained, written = _Once(progress), 0, set(finished)
    processes = min(jobs, len(cells))
    # From `jobs`, not from the number of remaining cells, so that a cell gives the same numbers whenever it is trained.
    threads = max(1, torch.get_num_threads() // jobs)
    torch.set_num_threads(threads)
    workers, busy = None, 0.0
    with contextlib.ExitStack() as stack:
        if processes > 1:
            # Each process loads what it needs; a copy here would only take memory.
            trainer.release()
            workers = stack.enter_context(CellWorkers(processes, threads, folder.path, folder.unfinished))
            outcomes: Iterable[tuple[Cell, Outcome]] = workers.train(cells, unseen, progress)
        else:
            outcomes = ((cell, trainer.train(cell, progress, look=cell.key in unseen)) for cell in cells)
        for number, (cell, outcome) in enumerate(outcomes, start=1):
            counted = f"{number}/{len(cells)} {cell.title}"
            busy += outcome.seconds
            if outcome.line is None:
                progress.on_note(f"{counted}: not trained, because {outcome.refusal}")
                continue
            trained += 1
            # The choice comes last: a finished choice has finished parts.
            for line in (*outcome.parts, outcome.line):
                if line["key"] not in written:
                    written.add(line["key"])
                    folder.write_cell(line)
            left = _estimate(busy / number, len(cells) - number, workers.alive if workers else 1)
            progress.on_note(f"{counted}: {_tell(outcome.line)}; about {_minutes(left)} left")
    return trained


def _write_analysis(
    analysis: AnalysisFolder,
    cells: Sequence[Cell],
    unlike: Mapping[str, Sequence[str]],
    request: Request,
    finished: Mapping[str, Any],
    progress: Progress,
) -> str | None:
    """Write the analysis, forward its notes, and return its page; None if no cell has features."""
    for method, keys in unlike.items():
        why = f"has other images than {cells[0].method} ({', '.join(keys)})"
        progress.on_note(f"analysis: {method} {why}, and is not analysed")
    if not any(analysis.holds(cell.key) for cell in cells):
        progress.on_note("analysis: no cell's features were stored; see the notes above")
        return None
    absent = [method for method in request.methods if method not in {*unlike, *(cell.method for cell in cells)}]
    for note in analysis.write_page(request.experiment.name, cells, finished, absent):
        progress.on_note(f"analysis: {note}")
    return str(analysis.page)


def _list_rows(
    cells: Sequence[Cell], finished: Mapping[str, Mapping[str, Any]], home: Collection[str]
) -> list[dict[str, Any]]:
    """Return the rows of results.csv: one per cell of the grid and site."""
    rows = []
    for cell in cells:
        line = finished[cell.key]
        for site, numbers in line["sites"].items():
            named = (*METRICS, "supported_auc", *POOLED_METRICS, *VALIDATION_METRICS)
            known = {name: _UNDEFINED if numbers[name] is None else numbers[name] for name in named}
            rows.append(
                {
                    "method": cell.method,
                    "shots": cell.shots,
                    "sampling": cell.sampling,
                    "seed": cell.seed,
                    "setting": cell.setting,
                    "home": cell.setting == "local" and cell.method in home,
                    "site": site,
                    "fold": cell.fold,
                    "images": numbers["images"],
                    **known,
                    "rounds": numbers["rounds"],
                    "chosen_round": numbers["chosen_round"],
                    "training": numbers["training"],
                    "choice": numbers["choice"],
                    "bytes_per_round": line["bytes_per_round"],
                    "status": line["status"],
                    "cell_seconds": line["seconds"],
                    "key": cell.key,
                }
            )
    return rows


def _tell(line: Mapping[str, Any]) -> str:
    if line["status"] == "failed":
        return "failed, no round could be averaged"
    values = [site["auc"] for site in line["sites"].values() if not math.isnan(site["auc"])]
    auc = f"{sum(values) / len(values):.3f}" if values else "undefined"
    return f"AUC {auc} in {line['seconds']:.0f} s"


def _estimate(seconds: float, remaining: int, processes: int) -> float:
    """Return the estimated seconds for the remaining cells; a cell has just ended, the other processes are halfway."""
    running = min(processes - 1, remaining)
    return seconds * (remaining - running / 2) / max(1, min(processes, remaining))


def _minutes(seconds: float) -> str:
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"
