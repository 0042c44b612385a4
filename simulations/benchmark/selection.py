"""Selection of the cells of a benchmark that are trained now, and of those that `--analyse` looks at."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from ept_fed.config.benchmark import SETTINGS
from ept_fed.config.benchmark_cell import Cell
from ept_fed.config.data import LOCAL_DATA_FIELDS
from ept_fed.config.diff import flatten_settings
from ept_fed.config.experiment import Experiment
from ept_fed.errors import InputRefusedError, Problem
from simulations.benchmark.grid import check_names, expand_patterns, list_cells

__all__ = ["Request", "choose_analysed", "find_unlike", "resolve_request"]

_PREFERRED = "federated+head"
# Settings that affect only the training images, not the images that are analysed.
_OF_TRAINING = ("shots", "sampling", "sampling_shots", "scarce_classes", "augmentation")


@dataclass(frozen=True)
class Request:
    """A grid, and the part of it that is requested now.

    Attributes:
        experiment: with the grid of the tables, which is the original grid and the requested rows and settings.
        cells: all cells of that grid.
        asked: the requested cells; at least one.
        methods: names of the requested rows; a row may have no cell.
    """

    experiment: Experiment
    cells: tuple[Cell, ...]
    asked: tuple[Cell, ...]
    methods: tuple[str, ...]


def resolve_request(experiment: Experiment, methods: Sequence[str], settings: Sequence[str]) -> Request:
    """Find the requested cells.

    Args:
        experiment: its `benchmark` is the grid.
        methods: rows by name or pattern; those that the grid lacks are added to it. Empty requests the grid's.
        settings: settings by name, treated in the same way.

    Raises:
        InputRefusedError: for unknown names, with the problems of the grid, or if the request matches no cell.
    """
    grid = experiment.benchmark
    rows = expand_patterns(grid.methods, grid)
    names = tuple(dict.fromkeys(expand_patterns(methods, grid) if methods else rows))
    problems = check_names("--method", names, grid) if methods else []
    problems += [_refuse_setting(name) for name in settings if name not in SETTINGS]
    if not problems:
        ways = [setting for setting in SETTINGS if setting in settings and setting not in grid.settings]
        joined = {
            "methods": (*grid.methods, *(name for name in names if name not in rows)),
            "settings": (*grid.settings, *ways),
        }
        experiment = experiment.model_copy(update={"benchmark": grid.model_copy(update=joined)})
    try:
        cells = list_cells(experiment)
    except InputRefusedError as refusal:
        raise InputRefusedError([*problems, *refusal.problems]) from refusal
    if problems:
        raise InputRefusedError(problems)
    wanted = settings or grid.settings
    named = [cell for cell in cells if cell.method in names]
    parts = {part.key for cell in named if cell.setting in wanted for part in cell.parts}
    asked = tuple(cell for cell in named if cell.setting in wanted or cell.key in parts)
    if not asked:
        fix = f"none of {', '.join(names)} has prompts and a head that these settings need; name another setting"
        raise InputRefusedError([Problem("--setting", ", ".join(wanted), fix)])
    return Request(experiment, cells, asked, names)


def choose_analysed(asked: Sequence[Cell], settings: Sequence[str]) -> tuple[Cell, ...]:
    """Return the cells whose features `--analyse` looks at, one per method: its first shots, sampling and seed.

    The setting is "federated+head" if any cell has it, else the first of `settings` that a cell has. A method without a
    cell in this setting is left out.

    Args:
        asked: the requested cells; at least one, in the order of the grid.
        settings: those of the grid, in its order.
    """
    held = {cell.setting for cell in asked}
    setting = _PREFERRED if _PREFERRED in held else next(setting for setting in settings if setting in held)
    wanted = (asked[0].sampling, asked[0].seed, setting)
    chosen: dict[str, Cell] = {}
    for cell in asked:
        if (cell.sampling, cell.seed, cell.setting) == wanted:
            chosen.setdefault(cell.method, cell)
    return tuple(chosen.values())


def find_unlike(cells: Sequence[Cell]) -> dict[str, list[str]]:
    """Return, by method, the settings that make its cell analyse other images than the first cell."""
    told = {cell.method: _describe_images(cell) for cell in cells}
    first = next(iter(told.values()), {})
    unlike = {
        method: sorted(key for key in own.keys() | first.keys() if own.get(key) != first.get(key))
        for method, own in told.items()
    }
    return {method: keys for method, keys in unlike.items() if keys}


def _describe_images(cell: Cell) -> dict[str, object]:
    hidden = {*_OF_TRAINING, *LOCAL_DATA_FIELDS - {"sites"}}
    return flatten_settings(cell.experiment.data.model_dump(mode="json", exclude=hidden), "data")


def _refuse_setting(name: str) -> Problem:
    near = difflib.get_close_matches(name, SETTINGS, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return Problem("--setting", name, f"{hint}known are {', '.join(SETTINGS)}")
