"""`ept-fed benchmark`: methods × shots × samplings × seeds × settings, one cell after the other, each trained once."""

import logging
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from client.site import Site
from ept_fed.benchmark_cells import choose_analysed, list_cells
from ept_fed.benchmark_settings import Cell
from ept_fed.config import Experiment
from ept_fed.data.datasets import SiteData
from ept_fed.evaluation.benchmark import compare_with_home, summarise
from ept_fed.problems import InputRefusedError, Problem
from ept_fed.protocol.plan import Plan
from ept_fed.reports.analysis_folder import AnalysisFolder
from ept_fed.reports.benchmark_chart import draw_benchmark
from ept_fed.reports.benchmark_folder import BenchmarkFolder
from ept_fed.reports.comparison import METRICS
from ept_fed.reports.progress import Progress, Silent
from ept_fed.reports.run_folder import RunFolder
from simulations.analyse import count_fold, record_features
from simulations.baselines import train_centralised, train_local
from simulations.federate import federate
from simulations.virtual_sites import VirtualFederation, prepare_federation

__all__ = ["benchmark"]

_UNDEFINED = float("nan")


class _Notes(Silent):
    """Passes on a cell's notes, with its title, and nothing else."""

    def __init__(self, title: str, progress: Progress) -> None:
        self._title, self._progress = title, progress

    def on_note(self, sentence: str) -> None:
        """Pass the note on."""
        self._progress.on_note(f"{self._title}: {sentence}")


def benchmark(experiment: Experiment, out: Path, progress: Progress, *, analyse: bool = False) -> Mapping[str, Any]:
    """Train what the grid still lacks in the folder, and write its tables.

    Args:
        experiment: validated settings; `benchmark` is the grid.
        out: new, or the folder of an earlier benchmark with the same settings, which goes on where that stopped.
        progress: told each cell as it ends, and the time left.
        analyse: also look at the features of one cell per method, see `choose_analysed`. A finished cell whose
            features were not kept is trained again for them.

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
    federations = _prepare(missing, {line["backbone"] for line in finished.values()}, out, unseen)
    folder.open(experiment)
    started = time.perf_counter()
    for number, cell in enumerate(missing, start=1):
        try:
            line = _run_cell(cell, federations(cell), folder, progress, analysis if cell.key in unseen else None)
        except InputRefusedError as refusal:
            # Whether images suffice may depend on how a later seed splits them; the other cells are worth having.
            progress.on_note(f"{number}/{len(missing)} {cell.title}: not trained, because {refusal}")
            continue
        if cell.key not in finished:
            folder.write_cell(line)
        left = (time.perf_counter() - started) / number * (len(missing) - number)
        progress.on_note(f"{number}/{len(missing)} {cell.title}: {_tell(line)}; about {_minutes(left)} left")
    finished = folder.read_cells()
    rows = _list_rows([cell for cell in cells if cell.key in finished], finished)
    if not rows:
        raise InputRefusedError([Problem("benchmark", len(cells), "no cell could be trained; the notes above say why")])
    summary = summarise(rows, experiment.benchmark.reference)
    folder.write_tables(rows, summary, compare_with_home(rows), draw_benchmark(summary))
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


def _prepare(
    cells: Sequence[Cell], used: Collection[str], out: Path, unseen: Collection[str]
) -> Callable[[Cell], VirtualFederation]:
    """Return how to get a cell's federation: images and backbone are loaded once for cells that share them.

    Every method is put around the backbone once before the first cell trains. `used` are the backbones of the cells
    that are finished: where weights lie is not part of a cell's key, so what they hold is compared here. `unseen` are
    the keys of the cells whose features will be looked at.

    Raises:
        InputRefusedError: with what stands in the way of any cell.
    """
    held: dict[str, VirtualFederation] = {}

    def find(cell: Cell) -> VirtualFederation:
        own = cell.experiment
        sources = own.model.model_dump_json(include={"backbone", "weights", "image_size", "device"})
        shared = f"{own.seed} {own.data.model_dump_json()} {sources}"
        if shared not in held:
            held.clear()
            held[shared] = prepare_federation(own)
        return replace(held[shared], experiment=own)

    problems: dict[str, Problem] = {}
    tried: set[str] = set()
    for cell in cells:
        own = cell.experiment
        kind = f"{own.data.model_dump_json()} {own.model.model_dump_json()} {own.federation.model_dump_json()}"
        if kind in tried:
            continue
        tried.add(kind)
        try:
            federation = find(cell)
            federation.plan()
            if unseen and federation.data.task == "multi_label":
                fix = "an image of several classes has no class centre of its own; leave --analyse out"
                raise InputRefusedError([Problem("--analyse", "multi_label", fix)])
            weights = own.model.weights
            problems |= {
                other: Problem("model.weights", weights, f"{out} has results of {other}; name another --out")
                for other in {*used} - {_name_backbone(federation)}
            }
        except InputRefusedError as refusal:
            for problem in refusal.problems:
                told = Problem(f"benchmark: {cell.method}: {problem.field}", problem.value, problem.fix)
                problems.setdefault(str(told), told)
    if problems:
        raise InputRefusedError(list(problems.values()))
    return find


def _name_backbone(federation: VirtualFederation) -> str:
    """Return what tells backbones of equal settings apart; random weights are drawn from the cell's own seed."""
    return f"backbone {federation.backbone.digest}" if federation.experiment.model.weights else "random weights"


def _run_cell(
    cell: Cell,
    federation: VirtualFederation,
    folder: BenchmarkFolder,
    progress: Progress,
    analysis: AnalysisFolder | None,
) -> dict[str, Any]:
    """Train one cell and return its line: who it is, and each site's numbers on its own images.

    Its features are kept first, if an analysis is given: a cell without them would be trained again.
    """
    started = time.perf_counter()
    folder.clear_unfinished()
    recall, sent = _train(cell, federation, RunFolder(folder.unfinished), _Notes(cell.title, progress))
    sites = {}
    for name, data in federation.data.sites.items():
        metrics = dict.fromkeys(METRICS, _UNDEFINED)
        images = count_fold(cell, data)
        if recall is not None:
            _, assessed = recall(name).assess(images)
            metrics = {metric: assessed[metric] for metric in METRICS}
        sites[name] = {"images": len(images), **metrics}
    seconds = round(time.perf_counter() - started, 1)
    if analysis is not None and recall is not None:
        analysis.write(record_features(cell, federation, recall, sites))
    folder.clear_unfinished()
    return {
        "key": cell.key,
        "status": "failed" if recall is None else "done",
        "method": cell.experiment.model.method,
        "title": cell.title,
        "backbone": _name_backbone(federation),
        "bytes_per_round": sent,
        "seconds": seconds,
        "sites": sites,
    }


def _train(
    cell: Cell, federation: VirtualFederation, scratch: RunFolder, notes: Progress
) -> tuple[Callable[[str], Site] | None, int]:
    """Return how to get each site's trained model (None if nothing was averaged), and the bytes it sends per round."""
    if cell.setting == "local":
        return train_local(federation, scratch, notes).__getitem__, 0
    if cell.setting == "centralised":
        pooled = train_centralised(federation, scratch, notes)
        return lambda _name: pooled, 0
    plan = federation.plan()
    sites = {
        name: federation.create_site(_unwatched(data, plan), federation.keep_states(scratch, "federated", name))
        for name, data in federation.data.sites.items()
    }
    result = federate(plan, federation.data.digest, sites, scratch, notes, resume=None)
    sent = 4 * plan.layout.size
    if not result.aggregated_anything:
        return None, sent

    def federated(name: str) -> Site:
        sites[name].forget_after(result.rounds[-1].round)
        sites[name].adopt(result.payload)
        return sites[name]

    return federated, sent


def _unwatched(data: SiteData, plan: Plan) -> SiteData:
    """Return a site whose validation images are not assessed round by round, unless an early stop waits for them."""
    if plan.patience is not None or plan.target_auc is not None:
        return data
    return replace(data, validation=data.validation.without_images())


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


def _minutes(seconds: float) -> str:
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"
