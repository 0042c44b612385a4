"""The cells of a grid: the product of its axes, without impossible cells and without duplicates."""

from collections.abc import Callable
from typing import Any, get_args

import pytest

from ept_fed.catalog.methods import METHODS
from ept_fed.config.benchmark import SETTINGS, Setting
from ept_fed.config.experiment import Experiment, ModelSettings
from ept_fed.errors import InputRefusedError
from simulations.benchmark.grid import list_cells
from simulations.engine.virtual_sites import prepare_federation

Micro = Callable[..., Experiment]


def refusals(call: Callable[[], Any]) -> dict[str, str]:
    with pytest.raises(InputRefusedError) as refusal:
        call()
    return {problem.field: problem.fix for problem in refusal.value.problems}


def test_the_grid_is_the_product_of_its_axes_without_what_cannot_be(micro: Micro) -> None:
    cells = list_cells(micro("benchmark.shots=[1, 2]", "benchmark.seeds=[3, 4, 5]"))
    assert len(cells) == (4 * len(METHODS) - 1) * 2 * 3
    assert len({cell.key for cell in cells}) == len(cells)
    assert ("linear", "federated") not in {(cell.method, cell.setting) for cell in cells}
    for cell in cells:
        assert cell.experiment.model.method == cell.method
        assert (cell.experiment.federation.payload == "folded") == (cell.method == "ept")
        assert (cell.experiment.data.shots, cell.experiment.seed) == (cell.shots, cell.seed)


def test_every_setting_has_the_cells_that_it_can_have_and_leaves_those_of_the_others(micro: Micro) -> None:
    assert tuple(SETTINGS) == get_args(Setting)
    fitted = "model.method=ept, training.head=lda"
    variants = f"{{fitted: [{fitted}], late: [{fitted}, federation.patience=2], first: [training.head_first_epochs=1]}}"
    grid = f"benchmark={{methods: [ept, fitted, late, first, linear], seeds: [0], variants: {variants}"
    usual = list_cells(micro(grid + "}"))
    cells = list_cells(micro(grid + f", settings: [{', '.join(SETTINGS)}]}}"))
    added = {cell.key for cell in cells if cell.setting in ("chosen", "centralised-prompts")}
    # A choice trains its local model with its own settings; only a head that is sent but not trained shows it.
    changed = {cell.key for cell in usual if (cell.method, cell.setting) == ("fitted", "local")}
    assert {cell.key for cell in usual} - changed == {cell.key for cell in cells} - added - {
        cell.key for cell in cells if (cell.method, cell.setting) == ("fitted", "local")
    }
    held = {name: [cell.method for cell in cells if cell.setting == name] for name in SETTINGS}
    everyone, tunes = ["ept", "fitted", "late", "first", "linear"], ["ept", "fitted", "late", "first"]
    shareable = ["ept", "fitted", "linear"]
    assert (held["local"], held["centralised"], held["federated+head"]) == (everyone, everyone, shareable)
    assert held["federated"] == held["centralised-prompts"] == tunes
    assert held["chosen"] == everyone
    shares = {cell.method: cell.experiment.federation.share for cell in cells if cell.setting == "chosen"}
    assert shares == {name: "prompts+head" if name in shareable else "prompts" for name in everyone}


def test_samplings_change_the_images_and_seeds_the_training(micro: Micro) -> None:
    cells = list_cells(micro("benchmark={methods: [ept], samplings: [7, 8], seeds: [0, 1], settings: [local]}"))
    assert [(cell.sampling, cell.seed) for cell in cells] == [(7, 0), (7, 1), (8, 0), (8, 1)]
    assert [cell.experiment.data_seed for cell in cells] == [7, 7, 8, 8]
    same, other, anew = (prepare_federation(cells[i].experiment).data.digest for i in (0, 1, 2))
    assert same == other != anew
    assert len({cell.key for cell in cells}) == len({cell.title for cell in cells}) == 4


def test_published_samplings_are_lists_of_their_own(micro: Micro) -> None:
    source = "data={source: medfmc, images: ., dataset: colon, sampling: exp1, sampling_shots: 1}"
    grid = "benchmark={methods: [ept], shots: [1, 5], samplings: [2, 5], seeds: [0], settings: [local]}"
    cells = list_cells(micro(source, grid))
    lists = [cell.experiment.data.model_dump() for cell in cells]
    drawn = [(data["sampling"], data["sampling_shots"]) for data in lists]
    assert drawn == [("exp2", 1), ("exp5", 1), ("exp2", 5), ("exp5", 5)]
    assert {(cell.experiment.data.shots, cell.experiment.data.seed) for cell in cells} == {(None, None)}


def test_null_among_the_shots_is_every_image(micro: Micro) -> None:
    grid = "benchmark={methods: [ept], shots: [1, null], seeds: [0], settings: [local]}"
    one, everything = list_cells(micro(grid))
    assert (one.experiment.data.shots, everything.experiment.data.shots) == (1, None)
    assert "all images" in everything.title
    source = "data={source: medfmc, images: ., dataset: colon, sampling: exp1, sampling_shots: 1}"
    assert "leave null out" in refusals(lambda: list_cells(micro(source, grid)))["benchmark.shots"]


def test_comparators_have_nothing_of_ept_left(micro: Micro) -> None:
    cells = list_cells(micro("model.tokens=1", "benchmark.seeds=[0]", "benchmark.settings=[local]"))
    assert {cell.method: cell.experiment.model.tokens for cell in cells} == {
        name: 1 if name == "ept" else ModelSettings().tokens for name in METHODS
    }


def test_a_pattern_names_every_row_that_fits_it(micro: Micro) -> None:
    variants = "variants: {depth 1: ['model.prompt_layers=[0]'], depth 2: ['model.prompt_layers=[1]'], sink: []}"
    grid = "benchmark={methods: [ept, 'depth *', 'v*'], seeds: [0], settings: [local], " + variants + "}"
    assert [cell.method for cell in list_cells(micro(grid))] == ["ept", "depth 1", "depth 2", "vp", "vpt"]
    assert "benchmark.methods" in refusals(lambda: list_cells(micro("benchmark.methods=[ept, 'deep*']")))


def test_variants_change_what_they_say_and_names_are_no_part_of_a_cell(micro: Micro) -> None:
    grid = "benchmark={methods: [ept, ept+tokens, same, vpt], seeds: [0], settings: [federated], variants: " + (
        "{ept+tokens: [model.tokens=1], same: [model.method=ept], vpt: [training.method_lr=0.003]}}"
    )
    plain, tokens, same, vpt = list_cells(micro(grid))
    assert (plain.experiment.model.tokens, tokens.experiment.model.tokens) == (0, 1)
    assert plain.key == same.key != tokens.key
    assert vpt.experiment.training.method_lr == 0.003


def test_a_variant_about_other_shots_is_told_by_its_own(micro: Micro) -> None:
    grid = "benchmark={methods: [ept, one], seeds: [0], settings: [local], variants: {one: [data.shots=1]}}"
    plain, one = list_cells(micro(grid))
    assert (plain.shots, one.shots, one.experiment.data.shots) == (2, 1, 1)


def test_shots_that_come_to_the_same_for_a_variant_are_listed_once(micro: Micro) -> None:
    grid = (
        "benchmark={methods: [ept, one], shots: [1, 2], seeds: [0], settings: [local], variants: {one: [data.shots=1]}}"
    )
    assert [(cell.method, cell.shots) for cell in list_cells(micro(grid))] == [("ept", 1), ("one", 1), ("ept", 2)]
    source = "data={source: medfmc, images: ., dataset: colon, sampling: exp1, sampling_shots: 1}"
    grid = grid.replace("data.shots=1", "data.sampling_shots=10").replace("[1, 2]", "[1, 5]")
    cells = list_cells(micro(source, grid))
    assert [(cell.method, cell.shots) for cell in cells] == [("ept", 1), ("one", 10), ("ept", 5)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("federation.share=prompts", "set benchmark.settings"),
        ("seed=3", "set benchmark.seeds"),
        ("name=other", "leave it out"),
        ("about=words", "leave it out"),
        ("personalisation.ditto=0.1", "ept-fed simulate"),
        ("evaluation.batch_size=7", "set it for the whole experiment"),
        ("benchmark.fold=validation", "in the experiment's section"),
        ("benchmark={}", "in the experiment's section"),
    ],
)
def test_a_variant_that_would_be_a_copy_is_refused(change: str, said: str, micro: Micro) -> None:
    grid = f"benchmark={{methods: [ept, x], seeds: [0], variants: {{x: [model.tokens=1, '{change}']}}}}"
    (refusal,) = refusals(lambda: list_cells(micro(grid))).items()
    assert refusal[0] == f"benchmark: x: {change.partition('=')[0]}"
    assert said in refusal[1]


def test_a_variant_draws_its_own_images_unless_the_grid_has_samplings(micro: Micro) -> None:
    grid = "benchmark={methods: [ept, x], seeds: [0], settings: [local], variants: {x: [data.seed=9]}"
    assert len({cell.key for cell in list_cells(micro(grid + "}"))}) == 2
    refused = refusals(lambda: list_cells(micro(grid + ", samplings: [1, 2]}")))
    assert "set benchmark.samplings" in refused["benchmark: x: data.seed"]


def test_rows_that_differ_only_in_places_are_refused(micro: Micro) -> None:
    grid = "benchmark={methods: [ept, x], seeds: [0], settings: [local], variants: {x: [model.weights=pretrained"
    refused = refusals(lambda: list_cells(micro(grid + "]}}")))
    assert set(refused) == {"benchmark: x: model.weights"}
    assert "ept has None and is the same cell" in refused["benchmark: x: model.weights"]
    assert len(list_cells(micro(grid + ", model.tokens=1]}}"))) == 2


def test_cells_have_the_budget_of_their_number_of_images_and_variants_overrule_it(micro: Micro) -> None:
    budgets = "budgets: {'2': [training.epochs=3, federation.rounds=5], all: [training.epochs=4]}"
    variants = "variants: {once: [training.epochs=1]}"
    grid = (
        f"benchmark={{methods: [ept, once], shots: [1, 2, null], seeds: [0], settings: [local], {variants}, {budgets}}}"
    )
    start = micro()
    usual = (start.training.epochs, start.federation.rounds)
    found = {
        (cell.method, cell.shots): (cell.experiment.training.epochs, cell.experiment.federation.rounds)
        for cell in list_cells(micro(grid))
    }
    assert found == {
        ("ept", 1): usual,
        ("once", 1): (1, usual[1]),
        ("ept", 2): (3, 5),
        ("once", 2): (1, 5),
        ("ept", None): (4, usual[1]),
        ("once", None): (1, usual[1]),
    }


@pytest.mark.parametrize(
    ("budgets", "field"),
    [
        ("{'3': [training.epochs=3]}", "benchmark.budgets.3"),
        ("{all: [training.epochs=3]}", "benchmark.budgets.all"),
        ("{'1': [data.shots=2]}", "benchmark.budgets.1"),
        ("{'1': [seed=2]}", "benchmark: budgets.1: seed"),
        ("{'1': [training.epoks=2]}", "benchmark: ept: training.epoks"),
        ("{'0': [training.epochs=2]}", "benchmark.budgets.0"),
    ],
)
def test_budgets_that_no_cell_has_or_that_change_the_grid_are_refused(budgets: str, field: str, micro: Micro) -> None:
    grid = f"benchmark={{methods: [ept], shots: [1, 2], seeds: [0], settings: [local], budgets: {budgets}}}"
    found = refusals(lambda: list_cells(micro(grid)))
    assert any(name.startswith(field) for name in found), found
