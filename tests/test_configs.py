"""Every file of configs/ holds together, its header quotes commands that are accepted, and results are of its grid."""

import csv
import re
import shlex
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import ept_fed.validation.data
import ept_fed.validation.experiment
from ept_fed.cli.main import app
from ept_fed.config.consortium import load_federation
from ept_fed.config.experiment import Experiment
from ept_fed.validation.load_experiment import load_experiment
from simulations.benchmark.grid import list_cells
from simulations.benchmark.selection import resolve_request

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
OPTIONS = re.compile(r'--[\w-]+ (?:"[^"]*"|\S+)(?: --[\w-]+ (?:"[^"]*"|\S+))*')
EXPERIMENTS = [path for path in CONFIGS if path.name != "federation.yaml"]


@pytest.fixture
def _files_are_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (ept_fed.validation.experiment, ept_fed.validation.data):
        monkeypatch.setattr(module, "check_exists", lambda _field, _path: [])


def quoted(path: Path) -> list[list[str]]:
    """The commands of a header: its first line; that line with options given in prose, or with another name in it."""
    header = takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
    first, *others = [line.removeprefix("#").strip() for line in header]
    prose = " ".join(others)
    commands = [first, *(f"{first} {options.rstrip('.,;')}" for options in OPTIONS.findall(prose))]
    for name, instead in re.findall(r'Instead of ("[^"]+"): ([^.]+)\.', prose):
        assert name in first
        commands += [first.replace(name, other) for other in re.findall(r'"[^"]+"', instead)]
    return [shlex.split(command) for command in commands]


@pytest.mark.usefixtures("_files_are_elsewhere")
@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_a_config_holds_together_and_names_its_own_command(path: Path) -> None:
    experiment = load_experiment(path)
    first = path.read_text().splitlines()[0]
    verb = "benchmark" if "benchmark" in experiment.model_fields_set else "simulate"
    assert first.startswith(f"# ept-fed {verb} configs/{path.name}")
    if verb == "benchmark":
        cells = list_cells(experiment)
        assert len({(cell.method, cell.shots, cell.sampling, cell.seed, cell.setting) for cell in cells}) == len(cells)


def test_commands_are_found_wherever_a_header_quotes_them() -> None:
    found = {path.stem: [shlex.join(words) for words in quoted(path)] for path in CONFIGS}
    assert all(found.values())
    assert found["demo"] == ["ept-fed simulate configs/demo.yaml"]
    assert [command.split("'")[1] for command in found["ablations"]] == ["length *", "depth *", "embedding *", "sink *"]


@pytest.mark.usefixtures("_files_are_elsewhere")
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_command_of_a_header_is_accepted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reached: list[str] = []

    def stand_in(verb: str) -> Callable[..., Any]:
        def start(given: Experiment | Path, *_: Any, **options: Any) -> None:
            if isinstance(given, Path):
                load_federation(given)
            elif verb == "benchmark":
                assert resolve_request(given, options["methods"], options["settings"]).asked
            reached.append(verb)
            raise typer.Exit(0)

        return start

    for verb, engine in (
        ("simulate", "simulations.engine.simulate.simulate"),
        ("benchmark", "simulations.benchmark.run.benchmark"),
        ("provision", "server.provisioning.provision.provision"),
    ):
        monkeypatch.setattr(engine, stand_in(verb))
    monkeypatch.chdir(ROOT)
    for name, *words in quoted(path):
        assert name == "ept-fed"
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, f"{shlex.join(words)}\n{done.output}"
        assert reached.pop() == words[0]


@pytest.mark.usefixtures("_files_are_elsewhere")
@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "results").glob("*.csv")))
def test_committed_results_are_rows_of_the_grid_with_every_seed(name: str) -> None:
    with (ROOT / "results" / f"{name}.csv").open() as file:
        held = {(row["method"], row["shots"], row["seed"], row["setting"]) for row in csv.DictReader(file)}
    cells = list_cells(load_experiment(ROOT / "configs" / f"{name}.yaml"))
    grid = {(cell.method, str(cell.shots), str(cell.seed), cell.setting) for cell in cells}
    assert held <= grid
    assert {method for method, *_ in held} == {method for method, *_ in grid}
    # A row may lack a way of working that was not measured, but never one seed of it.
    measured = {(method, shots, setting) for method, shots, _, setting in held}
    assert held == {cell for cell in grid if (cell[0], cell[1], cell[3]) in measured}
