"""Expand the `benchmark` section of an experiment into the cells of its grid."""

import difflib
import fnmatch
import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Any

from ept_fed.catalog.methods import FIXED_HEADS, METHODS
from ept_fed.config.benchmark import SETTINGS, BenchmarkSettings, Setting
from ept_fed.config.benchmark_cell import Cell
from ept_fed.config.data import DataSettings
from ept_fed.config.diff import flatten_settings
from ept_fed.config.experiment import EPT_SETTINGS, LOCAL_SETTINGS, Experiment, ModelSettings
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.validation.experiment import check_statistics
from ept_fed.validation.load_experiment import override_experiment

__all__ = ["check_names", "expand_patterns", "list_cells", "tell_of_row"]

# Settings that a variant cannot change: with them its cell would be the same as without them.
_NOT_A_ROWS_OWN = {
    "name": "a row has the name of its variant; leave it out",
    "about": "a row has no description; leave it out",
    "seed": "every row has the grid's seeds; set benchmark.seeds",
    "federation.share": "the grid's settings define what is shared; set benchmark.settings",
    "personalisation": "a cell has only the choice of the setting chosen; compare others with ept-fed simulate",
    "evaluation": "every row is measured in the same way; set it for the whole experiment",
    "benchmark": "a row has no grid of its own; set it in the experiment's section",
}


def list_cells(experiment: Experiment) -> tuple[Cell, ...]:
    """Return the cells in the order in which they run; cells that share images are adjacent.

    A method that has nothing to send without its head has no cell in a prompts-only setting. A method has no cell in a
    setting that shares the head if its head is fixed, is trained before the prompts, or is computed from statistics
    that the run's averaging cannot share. A choice brings the cells of its two models. If a variant sets its own shots,
    its cells are listed once and not for each of the grid's shots.

    Raises:
        InputRefusedError: with the problems of the grid and of every cell's own settings, each reported once; also if
            no method has a cell in any setting.
    """
    grid = experiment.benchmark
    methods = expand_patterns(grid.methods, grid)
    problems = [*_check_grid(grid, methods), *_check_changes(grid), *_check_budgets(grid), *_check_shots(experiment)]
    if problems:
        raise InputRefusedError(problems)
    cells: dict[tuple[str, str], Cell] = {}
    found: dict[str, Problem] = {}
    samplings: tuple[int | None, ...] = grid.samplings or (None,)
    shots: tuple[int | None, ...] = grid.shots or (experiment.data.shots,)
    for images in itertools.product(shots, samplings, grid.seeds):
        for method in methods:
            try:
                for cell in _list_settings(experiment, method, *images):
                    cells.setdefault((method, cell.key), cell)
            except InputRefusedError as refusal:
                found |= tell_of_row(method, refusal)
    if found:
        raise InputRefusedError(list(found.values()))
    if apart := _check_places(cells.values()):
        raise InputRefusedError(apart)
    if not cells:
        fix = f"none of {', '.join(methods)} has prompts and a head that these settings need; name another setting"
        raise InputRefusedError([Problem("benchmark.settings", ", ".join(grid.settings), fix)])
    return tuple(cells.values())


def expand_patterns(given: Iterable[str], grid: BenchmarkSettings) -> list[str]:
    """Return the rows by name; a name or pattern without a row is kept, so that it can be refused."""
    known = _list_known(grid)
    return [name for one in given for name in ([one] if one in known else fnmatch.filter(known, one)) or [one]]


def tell_of_row(method: str, refusal: InputRefusedError) -> dict[str, Problem]:
    """Return a row's problems under its name, keyed by their text, so that many cells report each only once."""
    told = [Problem(f"benchmark: {method}: {one.field}", one.value, one.fix) for one in refusal.problems]
    return {str(problem): problem for problem in told}


def check_names(field: str, names: Iterable[str], grid: BenchmarkSettings) -> list[Problem]:
    """Return a problem for each name that no row can have; `field` is the setting or option with the names."""
    known = _list_known(grid)
    found = []
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            fix = f"{hint}known are {', '.join(known)}; others are defined under benchmark.variants"
            found.append(Problem(field, name, fix))
    return found


def _list_settings(
    experiment: Experiment, method: str, shots: int | None, sampling: int | None, seed: int
) -> list[Cell]:
    own = experiment.benchmark.variants.get(method, ())
    changes = [
        "benchmark={}",
        "personalisation={}",
        "evaluation.baselines=[]",
        *_draw_images(experiment, shots, sampling),
        f"seed={seed}",
        *(_choose_method(method) if method in METHODS else []),
        *experiment.benchmark.budgets.get(_name_budget(shots), ()),
        *own,
    ]
    changed = override_experiment(experiment, changes, check=lambda _experiment: [])
    model = changed.model
    head = changed.training.head
    settled = (
        changed.training.head_first_epochs > 0
        or head in FIXED_HEADS
        or (head == "lda" and bool(check_statistics(changed.federation)))
    )
    # Local cells send nothing; the head is included so that methods without other tensors have a payload to adopt.
    own_head = settled or head == "lda"
    alone = "prompts" if own_head and METHODS[model.method].sends_without_head else "prompts+head"
    chosen = alone if settled else "prompts+head"
    if not any(change.startswith("federation.payload=") for change in own):
        folds = model.method == "ept" and model.embedding == "concat"
        changes.append(f"federation.payload={'folded' if folds else 'raw'}")
    # A variant may set other shots than the grid; its cells are listed under its own.
    told = _count_shots(changed.data)
    cells = []
    for setting in experiment.benchmark.settings:
        kind = SETTINGS[setting]
        if kind.prompts_only and not METHODS[model.method].sends_without_head:
            continue
        if kind.shares_head and settled:
            continue
        # A choice trains its local model with its own settings.
        by_choice = setting == "chosen" or (setting == "local" and "chosen" in experiment.benchmark.settings)
        given = chosen if by_choice else alone
        share = "prompts" if kind.prompts_only else "prompts+head" if kind.shares_head else given
        settings = override_experiment(experiment, [*changes, f"federation.share={share}"])
        cell = Cell(method, told, sampling, seed, setting, experiment.benchmark.fold, settings)
        cells += [*cell.parts, cell]
    return cells


def _draw_images(experiment: Experiment, shots: int | None, sampling: int | None) -> list[str]:
    """Return the settings that select a cell's training images; MedFMC publishes its samplings as lists."""
    if getattr(experiment.data, "sampling", None) is not None:
        published = {"sampling_shots": shots, "sampling": None if sampling is None else f"exp{sampling}"}
        return [f"data.{name}={value}" for name, value in published.items() if value is not None]
    drawn = [] if sampling is None else [f"data.seed={sampling}"]
    return [f"data.shots={'null' if shots is None else shots}", *drawn]


def _count_shots(data: DataSettings) -> int | None:
    """Return how many images per class and site a cell trains on; None for all."""
    published = getattr(data, "sampling", None) is not None
    return getattr(data, "sampling_shots", None) if published else data.shots


def _choose_method(method: str) -> list[str]:
    """Return the settings that change an experiment to the given method."""
    if method == "ept":
        return ["model.method=ept", "model.method_options={}"]
    defaults = ModelSettings().model_dump(mode="json", include=set(EPT_SETTINGS))
    resets = [f"model.{name}={json.dumps(value)}" for name, value in defaults.items()]
    return [f"model.method={method}", "model.method_options={}", *resets]


def _list_known(grid: BenchmarkSettings) -> list[str]:
    return [*METHODS, *(name for name in grid.variants if name not in METHODS)]


def _check_grid(grid: BenchmarkSettings, methods: Sequence[str]) -> list[Problem]:
    found = check_names("benchmark.methods", methods, grid)
    if grid.reference not in methods:
        fix = f"is not compared; name one of benchmark.methods: {', '.join(methods)}"
        found.append(Problem("benchmark.reference", grid.reference, fix))
    for name in grid.home:
        if name not in methods:
            fix = f"is not trained; name rows of benchmark.methods: {', '.join(methods)}"
            found.append(Problem("benchmark.home", name, fix))
    if grid.home and not {"local", "chosen"} & set(grid.settings):
        fix = "are compared with local models; add local or chosen to benchmark.settings"
        found.append(Problem("benchmark.home", ", ".join(grid.home), fix))
    axes: dict[str, Sequence[str | int | Setting | None]] = {
        "methods": methods,
        "shots": grid.shots,
        "samplings": grid.samplings,
        "seeds": grid.seeds,
        "settings": grid.settings,
    }
    for axis, values in axes.items():
        found += [
            Problem(f"benchmark.{axis}", value, "is given twice; name it once")
            for value in dict.fromkeys(values)
            if values.count(value) > 1
        ]
    return found


def _check_changes(grid: BenchmarkSettings) -> list[Problem]:
    """Return a problem for each setting of a variant or budget that would make its row a copy of another."""
    fixes = dict(_NOT_A_ROWS_OWN)
    if grid.samplings:
        fixes["data.seed"] = "every row has the grid's samplings; set benchmark.samplings"
    budgets = {f"budgets.{shots}": changes for shots, changes in grid.budgets.items()}
    return [
        Problem(f"benchmark: {name}: {key}", value, fix)
        for name, changes in {**grid.variants, **budgets}.items()
        for key, _, value in (change.partition("=") for change in changes)
        for idle, fix in fixes.items()
        if key == idle or key.startswith(f"{idle}.")
    ]


def _name_budget(shots: int | None) -> str:
    return "all" if shots is None else str(shots)


def _check_budgets(grid: BenchmarkSettings) -> list[Problem]:
    """Return a problem for each budget that no cell has, and for each that changes the number of its images."""
    given = [_name_budget(shots) for shots in grid.shots]
    unused = [
        Problem(f"benchmark.budgets.{shots}", shots, f"is none of benchmark.shots ({', '.join(given)})")
        for shots in grid.budgets
        if shots not in given
    ]
    fix = "a budget is for a number of images and cannot change it; set benchmark.shots"
    return unused + [
        Problem(f"benchmark.budgets.{shots}", change, fix)
        for shots, changes in grid.budgets.items()
        for change in changes
        if change.startswith(("data.shots=", "data.sampling_shots="))
    ]


def _check_places(cells: Iterable[Cell]) -> list[Problem]:
    """Return a problem for each row that differs from another only in file paths or the computing device.

    These settings are not part of a cell, so both rows would have the numbers of one training.
    """
    held: dict[str, tuple[str, dict[str, Any]]] = {}
    found: dict[str, Problem] = {}
    for cell in cells:
        local = flatten_settings(cell.experiment.model_dump(mode="json", include=LOCAL_SETTINGS))
        other, theirs = held.setdefault(cell.key, (cell.method, local))
        for field in sorted(local.keys() | theirs.keys()):
            if local.get(field) != theirs.get(field):
                fix = f"{other} has {theirs.get(field)} and is the same cell, as this is not part of one; compare them"
                told = Problem(f"benchmark: {cell.method}: {field}", local.get(field), f"{fix} in separate folders")
                found.setdefault(told.field, told)
    return list(found.values())


def _check_shots(experiment: Experiment) -> list[Problem]:
    """Return a problem if all images are requested from MedFMC's published lists, whose shots are fixed."""
    sampling = getattr(experiment.data, "sampling", None)
    if None in experiment.benchmark.shots and sampling is not None:
        fix = f"a published list ({sampling}) has a fixed number of images per class; leave null out"
        return [Problem("benchmark.shots", None, fix)]
    return []
