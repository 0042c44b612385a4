"""`ept-fed benchmark`: methods × shots × samplings × seeds × settings, each cell trained once, some at a time."""

import contextlib
import logging
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ept_fed.benchmark_cells import choose_analysed, list_cells
from ept_fed.benchmark_settings import Cell
from ept_fed.config import Experiment
from ept_fed.evaluation.benchmark import compare_with_home, summarise
from ept_fed.problems import InputRefusedError, Problem
from ept_fed.reports.analysis_folder import AnalysisFolder
from ept_fed.reports.benchmark_chart import draw_benchmark
from ept_fed.reports.benchmark_folder import BenchmarkFolder
from ept_fed.reports.comparison import METRICS
from ept_fed.reports.progress import Progress
from simulations.benchmark_cell import CellTrainer, Outcome, name_backbone
from simulations.benchmark_workers import CellWorkers

__all__ = ["benchmark"]

_UNDEFINED = float("nan")


def benchmark(
    experiment: Experiment, out: Path, progress: Progress, *, analyse: bool = False, jobs: int = 1
) -> Mapping[str, Any]:
    """Train what the grid still lacks in the folder, and write its tables.

    Args:
        experiment: validated settings; `benchmark` is the grid.
        out: new, or the folder of an earlier benchmark with the same settings, which goes on where that stopped.
        progress: told each cell as it ends, and the time left.
        analyse: also look at the features of one cell per method, see `choose_analysed`. A finished cell whose
            features were not kept is trained again for them.
        jobs: cells that train at a time, each in a process with its share of this one's threads, and with images and
            backbone of its own; 1 trains in this process. Equal threads per cell give equal numbers.

    Returns:
        `status` ("failed" if any cell averaged nothing or was not trained), `cells`, `trained` (in this call),
        `summary`, `folder`, `analysis` (the page, or None).

    Raises:
        InputRefusedError: with every problem of grid, data, models and folder, before the first cell.
    """
    logging.getLogger("flwr").setLevel(logging.WARNING)
    folder = BenchmarkFolder(out)
    problems = folder.check(experiment)
    try:
        cells = list_cells(experiment)
    except InputRefusedError as refusal:
        raise InputRefusedError([*problems, *refusal.problems]) from refusal
    if problems:
        raise InputRefusedError(problems)
    finished = folder.read_cells()
    analysis = AnalysisFolder(out)
    analysed = choose_analysed(cells, experiment) if analyse else ()
    if damaged := analysis.check(analysed):
        raise InputRefusedError(damaged)
    unseen = {cell.key for cell in analysed if not analysis.holds(cell.key)}
    missing = _list_missing(cells, finished, unseen)
    trainer = CellTrainer(folder.unfinished, analysis)
    _check_cells(missing, trainer, unseen)
    _check_sources(cells, missing, finished, trainer, out)
    with folder.open(experiment) as before:
        missing = _list_missing(cells, before, unseen)
        folder.clear_unfinished()
        try:
            _train(missing, before, unseen, trainer, folder, progress, jobs)
        finally:
            folder.clear_unfinished()
            finished = folder.read_cells()
            rows = _list_rows([cell for cell in cells if cell.key in finished], finished)
            summary = summarise(rows, experiment.benchmark.reference)
            if rows:
                folder.write_tables(rows, summary, compare_with_home(rows), draw_benchmark(summary))
        if not rows:
            fix = "no cell could be trained; the notes above say why"
            raise InputRefusedError([Problem("benchmark", len(cells), fix)])
        page = _write_analysis(analysis, analysed, experiment, finished, progress) if analyse else None
    failed = any(row["status"] == "failed" for row in rows) or any(cell.key not in finished for cell in cells)
    return {
        "status": "failed" if failed else "done",
        "cells": len(cells),
        "trained": sum(cell.key in finished for cell in missing),
        "summary": summary,
        "folder": str(out),
        "analysis": page,
    }


def _list_missing(cells: Sequence[Cell], finished: Mapping[str, Any], unseen: Collection[str]) -> list[Cell]:
    """Return the cells to train; two rows with the same settings are one training.

    A finished cell is trained again if its features are asked for and were not kept, unless it averaged nothing.
    """
    again = {key for key in unseen if key in finished and finished[key]["status"] != "failed"}
    missing = {cell.key: cell for cell in cells if cell.key not in finished or cell.key in again}
    return list(missing.values())


def _check_cells(cells: Sequence[Cell], trainer: CellTrainer, unseen: Collection[str]) -> None:
    """Put every method around the backbone once, before the first cell trains.

    `unseen` are the keys of the cells whose features will be looked at.

    Raises:
        InputRefusedError: with what stands in the way of any cell.
    """
    problems: dict[str, Problem] = {}
    tried: set[str] = set()
    for cell in cells:
        own = cell.experiment
        kind = f"{own.data.model_dump_json()} {own.model.model_dump_json()} {own.federation.model_dump_json()}"
        if kind in tried:
            continue
        tried.add(kind)
        try:
            federation = trainer.prepare(cell)
            federation.plan()
            if unseen and federation.data.task == "multi_label":
                fix = "an image of several classes has no class centre of its own; leave --analyse out"
                raise InputRefusedError([Problem("--analyse", "multi_label", fix)])
        except InputRefusedError as refusal:
            for problem in refusal.problems:
                told = Problem(f"benchmark: {cell.method}: {problem.field}", problem.value, problem.fix)
                problems.setdefault(str(told), told)
    if problems:
        raise InputRefusedError(list(problems.values()))


def _check_sources(
    cells: Sequence[Cell], missing: Sequence[Cell], finished: Mapping[str, Any], trainer: CellTrainer, out: Path
) -> None:
    """Refuse to add cells to those of another backbone, or of other images.

    Where weights and images lie is no part of a cell's key, so what they hold is compared: the backbone's weights, and
    for one finished cell of the grid which images each site has in which split, and their labels, though not their
    pixels.

    Raises:
        InputRefusedError: with what differs.
    """
    if not missing or not finished:
        return
    known = next((cell for cell in cells if cell.key in finished), None)
    federation = trainer.prepare(known or missing[0])
    own = federation.experiment
    used = {line["backbone"] for line in finished.values()}
    problems = [
        Problem("model.weights", own.model.weights, f"{out} has results of {other}; name another --out")
        for other in sorted(used - {name_backbone(federation)})
    ]
    if known is not None and finished[known.key]["data"] != federation.data.digest:
        fix = f"has other images, sites or labels than those that {out} has results of; name another --out"
        problems.append(Problem("data.root", own.data.root, fix))
    if problems:
        raise InputRefusedError(problems)


def _train(
    cells: Sequence[Cell],
    finished: Collection[str],
    unseen: Collection[str],
    trainer: CellTrainer,
    folder: BenchmarkFolder,
    progress: Progress,
    jobs: int,
) -> None:
    """Train the cells, here or in processes of their own, and write the lines of those that were not finished."""
    processes = min(jobs, len(cells))
    # By what was asked for, not by what is left to do: a cell comes out the same whenever it is trained.
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
            if cell.key not in finished:
                folder.write_cell(outcome.line)
            left = _estimate(busy / number, len(cells) - number, workers.alive if workers else 1)
            progress.on_note(f"{counted}: {_tell(outcome.line)}; about {_minutes(left)} left")


def _write_analysis(
    analysis: AnalysisFolder,
    cells: Sequence[Cell],
    experiment: Experiment,
    finished: Mapping[str, Any],
    progress: Progress,
) -> str | None:
    """Write the analysis, pass its notes on, and return its page; None if no cell has features."""
    if not any(analysis.holds(cell.key) for cell in cells):
        progress.on_note("analysis: no cell's features were kept; the notes above say why")
        return None
    left_out = [method for method in experiment.benchmark.methods if method not in {cell.method for cell in cells}]
    for note in analysis.write_page(experiment.name, cells, finished, left_out):
        progress.on_note(f"analysis: {note}")
    return str(analysis.page)


def _list_rows(cells: Sequence[Cell], finished: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return results.csv: one row per cell of the grid and site."""
    rows = []
    for cell in cells:
        line = finished[cell.key]
        for site, numbers in line["sites"].items():
            known = {name: _UNDEFINED if numbers[name] is None else numbers[name] for name in METRICS}
            rows.append(
                {
                    "method": cell.method,
                    "shots": cell.shots,
                    "sampling": cell.sampling,
                    "seed": cell.seed,
                    "setting": cell.setting,
                    "site": site,
                    "fold": cell.fold,
                    "images": numbers["images"],
                    **known,
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
    """Return the seconds that the remaining cells take; one has just ended, the other processes are half through."""
    running = min(processes - 1, remaining)
    return seconds * (remaining - running / 2) / processes


def _minutes(seconds: float) -> str:
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"
