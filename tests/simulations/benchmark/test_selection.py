"""Requested cells are trained now; the grid does not change, and requested cells that are not in it are added."""

from collections.abc import Callable
from typing import Any

import pytest

from ept_fed.config.benchmark_cell import Cell
from ept_fed.config.experiment import Experiment
from ept_fed.errors import InputRefusedError
from simulations.benchmark.grid import list_cells
from simulations.benchmark.selection import choose_analysed, find_unlike, resolve_request

Micro = Callable[..., Experiment]
GRID = (
    "benchmark={methods: [base, 'tokens *'], seeds: [0, 1], settings: [local, federated], reference: base, variants: "
    "{base: [], tokens 1: [model.tokens=1], tokens 2: [model.tokens=2], one: [data.shots=1], spare: [model.tokens=3]}}"
)


def names(cells: tuple[Cell, ...]) -> list[str]:
    return list(dict.fromkeys(cell.method for cell in cells))


def refusals(call: Callable[[], Any]) -> dict[str, str]:
    with pytest.raises(InputRefusedError) as refusal:
        call()
    return {problem.field: problem.fix for problem in refusal.value.problems}


def test_what_is_not_asked_for_stays_in_the_grid(micro: Micro) -> None:
    experiment = micro(GRID)
    everything = resolve_request(experiment, (), ())
    assert everything.cells == everything.asked == list_cells(experiment)
    part = resolve_request(experiment, ["tokens *", "tokens 1"], ["local"])
    assert (part.experiment, part.cells) == (experiment, everything.cells)
    assert part.methods == ("tokens 1", "tokens 2")
    assert part.asked == tuple(c for c in part.cells if c.method in part.methods and c.setting == "local")
    assert len(part.asked) == 2 * 2


def test_what_the_grid_lacks_joins_it(micro: Micro) -> None:
    experiment = micro(GRID)
    request = resolve_request(experiment, ["spare", "lora"], ["centralised"])
    assert names(request.cells) == ["base", "tokens 1", "tokens 2", "spare", "lora"]
    assert request.cells == list_cells(request.experiment)
    assert {cell.setting for cell in request.cells} == {"local", "federated", "centralised"}
    assert names(request.asked) == ["spare", "lora"]
    assert {cell.setting for cell in request.asked} == {"centralised"}


def test_unknown_names_are_refused_with_their_nearest_and_with_what_is_wrong_in_the_grid(micro: Micro) -> None:
    experiment = micro(GRID, "benchmark.seeds=[1, 1]")
    refused = refusals(lambda: resolve_request(experiment, ["lorra"], ["centralized"]))
    assert set(refused) == {"--method", "--setting", "benchmark.seeds"}
    assert refused["--method"].startswith("did you mean 'lora'? known are ept")
    assert refused["--setting"].startswith("did you mean 'centralised'? known are local")


def test_a_request_without_a_cell_is_refused(micro: Micro) -> None:
    refused = refusals(lambda: resolve_request(micro(GRID), ["linear"], ["federated"]))
    assert "none of linear has prompts and a head" in refused["--setting"]


def test_one_cell_of_each_method_is_looked_at(micro: Micro) -> None:
    grid = ("benchmark.shots=[2, 1]", "benchmark.seeds=[4, 3]", "benchmark.methods=[linear, ept]")
    for settings, chosen, methods in (
        (["local", "federated+head"], "federated+head", ["linear", "ept"]),
        (["federated", "local"], "federated", ["ept"]),
        (["centralised"], "centralised", ["linear", "ept"]),
    ):
        experiment = micro(*grid, f"benchmark.settings={settings}")
        found = choose_analysed(list_cells(experiment), settings)
        assert [cell.method for cell in found] == methods
        assert {(cell.shots, cell.seed, cell.setting) for cell in found} == {(2, 4, chosen)}


def test_a_method_with_shots_of_its_own_is_looked_at_with_these(micro: Micro) -> None:
    asked = resolve_request(micro(GRID), ["base", "one"], ()).asked
    chosen = choose_analysed(asked, ["local", "federated"])
    assert [(cell.method, cell.shots) for cell in chosen] == [("base", 2), ("one", 1)]
    assert find_unlike(chosen) == {}


def test_the_setting_that_is_looked_at_is_one_that_is_asked_for(micro: Micro) -> None:
    asked = resolve_request(micro(GRID, "benchmark.settings=[federated, federated+head, local]"), (), ["local"]).asked
    assert {cell.setting for cell in choose_analysed(asked, ["federated", "federated+head", "local"])} == {"local"}


def test_methods_with_other_test_images_are_unlike(micro: Micro) -> None:
    others = "{base: [], x: ['data.partition={kind: dirichlet, sites: 2}'], y: [data.test_fraction=0.3]}"
    grid = f"benchmark={{methods: [base, x, y], seeds: [0], settings: [local], reference: base, variants: {others}}}"
    unlike = find_unlike(list_cells(micro(grid)))
    assert set(unlike) == {"x", "y"}
    assert "data.partition.kind" in unlike["x"]
    assert unlike["y"] == ["data.test_fraction"]
