"""Checks before the first cell of a benchmark: each cell can be trained and fits the results in the folder."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ept_fed.config.benchmark_cell import Cell
from ept_fed.errors import InputRefusedError, Problem
from simulations.benchmark.cell import CellTrainer
from simulations.benchmark.grid import tell_of_row
from simulations.benchmark.provenance import describe_sources, name_backbone

__all__ = ["check_cells", "check_sources"]


def check_cells(cells: Sequence[Cell], trainer: CellTrainer, unseen: Collection[str]) -> None:
    """Check that every method can be applied to the backbone, before the first cell trains.

    Args:
        cells: to train.
        trainer: prepares their federations.
        unseen: keys of the cells whose features will be recorded.

    Raises:
        InputRefusedError: with the problems of all cells.
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
            problems |= tell_of_row(cell.method, refusal)
    if problems:
        raise InputRefusedError(list(problems.values()))


def check_sources(
    cells: Sequence[Cell], missing: Sequence[Cell], finished: Mapping[str, Any], trainer: CellTrainer, out: Path
) -> None:
    """Refuse to add cells to results of another backbone or of other images.

    The paths of weights and images are not part of a cell's key, so their contents are compared. Weights are compared
    for every backbone that gets new cells. Images are compared for one finished cell, if possible one of this grid: the
    images of each site and split, and their labels, but not their pixels.

    Raises:
        InputRefusedError: with the differences.
    """
    if not missing or not finished:
        return
    experiment = missing[0].experiment
    problems = []
    backbones: dict[str, str] = {}
    if (example := _find_example(cells, missing[0], finished)) is not None:
        cell, line = example
        federation = trainer.prepare(cell)
        backbones[describe_sources(cell.experiment)["model"]] = name_backbone(federation)
        if line["data"] != federation.data.digest:
            fix = f"has other images, sites or labels than the results in {out}; name another --out"
            problems.append(Problem("data.root", experiment.data.root, fix))
    used = {line["sources"]["model"] for line in finished.values()}
    for cell in missing:
        model = describe_sources(cell.experiment)["model"]
        if model in used and model not in backbones:
            backbones[model] = name_backbone(trainer.prepare(cell))
    others = {
        line["backbone"]
        for line in finished.values()
        if line["backbone"] != backbones.get(line["sources"]["model"], line["backbone"])
    }
    # Random weights and weights from a file also lead to the same key.
    others |= {
        finished[cell.key]["backbone"]
        for cell in cells
        if cell.key in finished and finished[cell.key]["sources"]["model"] != describe_sources(cell.experiment)["model"]
    }
    problems += [
        Problem("model.weights", experiment.model.weights, f"{out} has results of {other}; name another --out")
        for other in sorted(others)
    ]
    if problems:
        raise InputRefusedError(problems)


def _find_example(
    cells: Sequence[Cell], missing: Cell, finished: Mapping[str, Any]
) -> tuple[Cell, Mapping[str, Any]] | None:
    """Return a finished cell of this grid and its line.

    If there is none, return a finished cell of another grid. Its images are drawn again as for that cell, but from the
    current paths.
    """
    for cell in cells:
        if cell.key in finished:
            return cell, finished[cell.key]
    for line in finished.values():
        then = line["sources"]["data"]
        if then["source"] == missing.experiment.data.source:
            return _draw_again(missing, then), line
    return None


def _draw_again(cell: Cell, then: Mapping[str, Any]) -> Cell:
    own = cell.experiment
    data = type(own.data).model_validate({**own.data.model_dump(mode="json"), **then})
    return replace(cell, experiment=own.model_copy(update={"data": data}))
