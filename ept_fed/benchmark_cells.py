"""From an experiment with a `benchmark` section to the cells of its grid."""

import difflib
from collections.abc import Sequence

from ept_fed.benchmark_settings import Cell, Setting
from ept_fed.config import Experiment
from ept_fed.experiment_file import override_experiment
from ept_fed.methods import METHODS
from ept_fed.problems import InputRefusedError, Problem

__all__ = ["choose_analysed", "list_cells"]


def list_cells(experiment: Experiment) -> tuple[Cell, ...]:
    """Return the cells in the order in which they run: what shares its images stands together.

    A method that has nothing to send without its head has no cell `federated`.

    Raises:
        InputRefusedError: with the problems of the grid, and of every cell's own settings, each told once.
    """
    grid = experiment.benchmark
    problems = _check_grid(experiment)
    if problems:
        raise InputRefusedError(problems)
    cells: list[Cell] = []
    found: dict[str, Problem] = {}
    for shots in grid.shots or (experiment.data.shots,):
        for seed in grid.seeds:
            for method in grid.methods:
                try:
                    cells += _list_settings(experiment, method, shots, seed)
                except InputRefusedError as refusal:
                    for problem in refusal.problems:
                        told = Problem(f"benchmark: {method}: {problem.field}", problem.value, problem.fix)
                        found.setdefault(str(told), told)
    if found:
        raise InputRefusedError(list(found.values()))
    return tuple(cells)


def choose_analysed(cells: Sequence[Cell], experiment: Experiment) -> tuple[Cell, ...]:
    """Return the cells whose features `--analyse` looks at, one per method: the grid's first shots and seed.

    The setting is "federated+head" if the grid has it, else the grid's first; a method without a cell there is left
    out.
    """
    grid = experiment.benchmark
    setting = "federated+head" if "federated+head" in grid.settings else grid.settings[0]
    wanted = (grid.shots[0] if grid.shots else experiment.data.shots, grid.seeds[0], setting)
    return tuple(cell for cell in cells if (cell.shots, cell.seed, cell.setting) == wanted)


def _list_settings(experiment: Experiment, method: str, shots: int | None, seed: int) -> list[Cell]:
    own = experiment.benchmark.variants.get(method, ())
    changes = [
        "benchmark={}",
        "personalisation={}",
        "evaluation.baselines=[]",
        f"data.shots={'null' if shots is None else shots}",
        f"seed={seed}",
        *([f"model.method={method}", "model.method_options={}"] if method in METHODS else []),
        *own,
    ]
    model = override_experiment(experiment, changes, check=lambda _experiment: []).model
    if not any(change.startswith("federation.payload=") for change in own):
        folds = model.method == "ept" and model.embedding == "concat"
        changes.append(f"federation.payload={'folded' if folds else 'raw'}")
    cells = []
    for setting in experiment.benchmark.settings:
        if setting == "federated" and not METHODS[model.method].sends_without_head:
            continue
        # Alone nothing is sent; the head is named so that methods without other tensors have a payload to adopt.
        share = "prompts" if setting == "federated" else "prompts+head"
        settings = override_experiment(experiment, [*changes, f"federation.share={share}"])
        cells.append(Cell(method, shots, seed, setting, experiment.benchmark.fold, settings))
    return cells


def _check_grid(experiment: Experiment) -> list[Problem]:
    grid = experiment.benchmark
    known = [*METHODS, *(name for name in grid.variants if name not in METHODS)]
    found = []
    for name in grid.methods:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            fix = f"{hint}known are {', '.join(known)}; others are defined under benchmark.variants"
            found.append(Problem("benchmark.methods", name, fix))
    if grid.reference not in grid.methods:
        fix = f"is not compared; name one of benchmark.methods: {', '.join(grid.methods)}"
        found.append(Problem("benchmark.reference", grid.reference, fix))
    axes: dict[str, Sequence[str | int | Setting]] = {
        "methods": grid.methods,
        "shots": grid.shots,
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
