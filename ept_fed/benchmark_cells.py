"""From an experiment with a `benchmark` section to the cells of its grid."""

import difflib
import fnmatch
import itertools
import json
from collections.abc import Sequence

from ept_fed.benchmark_settings import SETTINGS, BenchmarkSettings, Cell, Setting
from ept_fed.config import EPT_SETTINGS, Experiment, ModelSettings
from ept_fed.contradictions import check_statistics
from ept_fed.experiment_file import override_experiment
from ept_fed.methods import COMMON_HEADS, METHODS
from ept_fed.problems import InputRefusedError, Problem

__all__ = ["choose_analysed", "list_cells"]


def list_cells(experiment: Experiment) -> tuple[Cell, ...]:
    """Return the cells in the order in which they run: what shares its images stands together.

    A method that has nothing to send without its head has no cell in a setting of prompts alone. One whose head is
    common, trained before the prompts are, or computed from statistics that cannot be shared as the run averages, has
    none in a setting that shares it.

    Raises:
        InputRefusedError: with the problems of the grid, and of every cell's own settings, each told once; also if no
            method has a cell in any setting.
    """
    grid = experiment.benchmark
    methods = _expand_patterns(grid)
    problems = [*_check_grid(grid, methods), *_check_shots(experiment)]
    if problems:
        raise InputRefusedError(problems)
    cells: list[Cell] = []
    found: dict[str, Problem] = {}
    samplings: tuple[int | None, ...] = grid.samplings or (None,)
    shots: tuple[int | None, ...] = grid.shots or (experiment.data.shots,)
    for images in itertools.product(shots, samplings, grid.seeds):
        for method in methods:
            try:
                cells += _list_settings(experiment, method, *images)
            except InputRefusedError as refusal:
                for problem in refusal.problems:
                    told = Problem(f"benchmark: {method}: {problem.field}", problem.value, problem.fix)
                    found.setdefault(str(told), told)
    if found:
        raise InputRefusedError(list(found.values()))
    if not cells:
        fix = f"none of {', '.join(methods)} has prompts and a head that these settings need; name another setting"
        raise InputRefusedError([Problem("benchmark.settings", ", ".join(grid.settings), fix)])
    return tuple(cells)


def choose_analysed(cells: Sequence[Cell], experiment: Experiment) -> tuple[Cell, ...]:
    """Return the cells whose features `--analyse` looks at, one per method: the grid's first shots, sampling and seed.

    The setting is "federated+head" if the grid has it, else the grid's first; a method without a cell there is left
    out.
    """
    grid = experiment.benchmark
    setting = "federated+head" if "federated+head" in grid.settings else grid.settings[0]
    shots, sampling = grid.shots[0] if grid.shots else experiment.data.shots, next(iter(grid.samplings), None)
    wanted = (shots, sampling, grid.seeds[0], setting)
    return tuple(cell for cell in cells if (cell.shots, cell.sampling, cell.seed, cell.setting) == wanted)


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
        *own,
    ]
    changed = override_experiment(experiment, changes, check=lambda _experiment: [])
    model = changed.model
    head = changed.training.head
    settled = (
        changed.training.head_first_epochs > 0
        or head in COMMON_HEADS
        or (head == "discriminant" and bool(check_statistics(changed.federation)))
    )
    # Alone nothing is sent; the head is named so that methods without other tensors have a payload to adopt.
    own_head = settled or head == "discriminant"
    alone = "prompts" if own_head and METHODS[model.method].sends_without_head else "prompts+head"
    if not any(change.startswith("federation.payload=") for change in own):
        folds = model.method == "ept" and model.embedding == "concat"
        changes.append(f"federation.payload={'folded' if folds else 'raw'}")
    # A variant may be about other shots than the grid's: its cells are told by its own.
    told = changed.data.shots if any(change.startswith("data.shots=") for change in own) else shots
    cells = []
    for setting in experiment.benchmark.settings:
        kind = SETTINGS[setting]
        if kind.prompts_alone and not METHODS[model.method].sends_without_head:
            continue
        if kind.shares_head and settled:
            continue
        share = "prompts" if kind.prompts_alone else "prompts+head" if kind.shares_head else alone
        settings = override_experiment(experiment, [*changes, f"federation.share={share}"])
        cells.append(Cell(method, told, sampling, seed, setting, experiment.benchmark.fold, settings))
    return cells


def _draw_images(experiment: Experiment, shots: int | None, sampling: int | None) -> list[str]:
    """Return the settings that say which images a cell trains on; MedFMC publishes its samplings as lists."""
    if getattr(experiment.data, "sampling", None) is not None:
        published = {"sampling_shots": shots, "sampling": None if sampling is None else f"exp{sampling}"}
        return [f"data.{name}={value}" for name, value in published.items() if value is not None]
    drawn = [] if sampling is None else [f"data.seed={sampling}"]
    return [f"data.shots={'null' if shots is None else shots}", *drawn]


def _choose_method(method: str) -> list[str]:
    """Return the settings that put a method into an experiment that was written for another."""
    if method == "ept":
        return ["model.method=ept", "model.method_options={}"]
    defaults = ModelSettings().model_dump(mode="json", include=set(EPT_SETTINGS))
    resets = [f"model.{name}={json.dumps(value)}" for name, value in defaults.items()]
    return [f"model.method={method}", "model.method_options={}", *resets]


def _list_known(grid: BenchmarkSettings) -> list[str]:
    return [*METHODS, *(name for name in grid.variants if name not in METHODS)]


def _expand_patterns(grid: BenchmarkSettings) -> list[str]:
    """Return the methods by name; one that no row has stays as it is, to be refused."""
    known = _list_known(grid)
    return [
        name
        for given in grid.methods
        for name in ([given] if given in known else fnmatch.filter(known, given)) or [given]
    ]


def _check_grid(grid: BenchmarkSettings, methods: Sequence[str]) -> list[Problem]:
    known = _list_known(grid)
    found = []
    for name in methods:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            fix = f"{hint}known are {', '.join(known)}; others are defined under benchmark.variants"
            found.append(Problem("benchmark.methods", name, fix))
    if grid.reference not in methods:
        fix = f"is not compared; name one of benchmark.methods: {', '.join(methods)}"
        found.append(Problem("benchmark.reference", grid.reference, fix))
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


def _check_shots(experiment: Experiment) -> list[Problem]:
    """MedFMC's published lists have the shots that they have."""
    sampling = getattr(experiment.data, "sampling", None)
    if None in experiment.benchmark.shots and sampling is not None:
        fix = f"a published list ({sampling}) has so many images per class; leave null out"
        return [Problem("benchmark.shots", None, fix)]
    return []
