"""`ept-fed benchmark`: every cell once, none lost, and numbers that are those of `simulate`."""

import csv
import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

import simulations.benchmark_cell
from ept_fed.benchmark_cells import list_cells
from ept_fed.benchmark_settings import SETTINGS, Setting
from ept_fed.config import Experiment
from ept_fed.evaluation.benchmark import SUMMARY_METRICS, compare_means_with_home, compare_with_home, summarise
from ept_fed.methods import METHODS
from ept_fed.problems import InputRefusedError, Problem
from ept_fed.reports.benchmark_chart import draw_benchmark
from ept_fed.reports.progress import Silent
from simulations.benchmark import benchmark
from simulations.simulate import simulate
from simulations.tabulate_benchmark import tabulate_methods
from simulations.virtual_sites import prepare_federation

Micro = Callable[..., Experiment]
SMALL = ("federation.rounds=1", "benchmark.seeds=[0]", "benchmark.methods=[ept, linear]")


def titles(folder: Path) -> list[str]:
    return [json.loads(line)["title"] for line in (folder / "cells.jsonl").read_text().splitlines()]


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


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
    fitted = "model.method=ept, training.head=discriminant"
    variants = f"{{fitted: [{fitted}], late: [{fitted}, federation.patience=2], first: [training.head_first_epochs=1]}}"
    grid = f"benchmark={{methods: [ept, fitted, late, first, linear], seeds: [0], variants: {variants}"
    usual = {cell.key for cell in list_cells(micro(grid + "}"))}
    cells = list_cells(micro(grid + f", settings: [{', '.join(SETTINGS)}]}}"))
    assert usual == {cell.key for cell in cells if cell.setting != "centralised-prompts"}
    held = {name: [cell.method for cell in cells if cell.setting == name] for name in SETTINGS}
    everyone, tunes = ["ept", "fitted", "late", "first", "linear"], ["ept", "fitted", "late", "first"]
    shareable = ["ept", "fitted", "linear"]
    assert (held["local"], held["centralised"], held["federated+head"]) == (everyone, everyone, shareable)
    assert held["federated"] == held["centralised-prompts"] == tunes


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
        name: int(name == "ept") for name in METHODS
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


def test_cells_are_trained_once_and_a_grown_grid_trains_what_is_new(
    micro: Micro, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "results"
    report = benchmark(micro(*SMALL), out, Silent())
    assert (report["status"], report["cells"], report["trained"]) == ("done", 7, 7)
    assert len(set(titles(out))) == 7
    rows = table(out / "results.csv")
    assert len(rows) == 7 * 3
    assert (out / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert not (out / "unfinished").exists()
    sent = {(row["method"], row["setting"]): int(row["bytes_per_round"]) for row in rows}
    assert sent["ept", "local"] == sent["ept", "centralised"] == 0
    assert 0 < sent["ept", "federated"] < sent["ept", "federated+head"]
    before = (out / "cells.jsonl").read_bytes()
    grown = micro(*SMALL[:2], "benchmark.methods=[ept, linear, bias]", "benchmark.settings=[local, federated]")
    report = benchmark(grown, out, Silent())
    assert (report["cells"], report["trained"]) == (5, 2)
    assert (out / "cells.jsonl").read_bytes().startswith(before)
    monkeypatch.setattr(
        simulations.benchmark_cell, "prepare_federation", lambda _e: pytest.fail("nothing is left to do")
    )
    assert benchmark(grown, out, Silent())["trained"] == 0
    assert {row["method"] for row in table(out / "summary.csv")} == {"ept", "linear", "bias"}


def test_a_benchmark_that_is_killed_goes_on_with_the_cell_it_was_in(
    micro: Micro, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (*SMALL, "benchmark.settings=[local, federated]")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    benchmark(micro(*settings), whole, Silent())

    def stop(*_arguments: Any, **_options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(simulations.benchmark_cell, "federate", stop)
        with pytest.raises(KeyboardInterrupt):
            benchmark(micro(*settings), killed, Silent())
    assert len(titles(killed)) == len({row["setting"] for row in table(killed / "results.csv")}) == 1
    with (killed / "cells.jsonl").open("a") as file:
        file.write('{"key": "half a li')
    assert benchmark(micro(*settings), killed, Silent())["trained"] == 2
    assert titles(killed) == titles(whole)
    first, again = table(whole / "results.csv"), table(killed / "results.csv")
    assert [row | {"cell_seconds": ""} for row in first] == [row | {"cell_seconds": ""} for row in again]


def test_a_seed_whose_images_do_not_suffice_costs_its_own_cells_only(
    micro: Micro, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("federation.rounds=1", "benchmark.methods=[ept]", "benchmark.settings=[local]")
    prepare = simulations.benchmark_cell.prepare_federation

    def refuse(experiment: Experiment) -> Any:
        if experiment.seed == 1:
            raise InputRefusedError([Problem("data.shots", 2, "too many")])
        return prepare(experiment)

    monkeypatch.setattr(simulations.benchmark_cell, "prepare_federation", refuse)
    report = benchmark(micro(*settings, "benchmark.seeds=[0, 1, 2]"), tmp_path / "results", Silent())
    assert (report["status"], report["cells"], report["trained"]) == ("failed", 3, 2)
    assert [title.split(", ")[2] for title in titles(tmp_path / "results")] == ["seed 0", "seed 2"]
    assert {row["seed"] for row in table(tmp_path / "results" / "results.csv")} == {"0", "2"}


def test_settings_are_chosen_on_other_images_than_those_that_are_reported(micro: Micro, tmp_path: Path) -> None:
    grid = ("federation.rounds=1", "benchmark.seeds=[0]", "benchmark.methods=[ept]", "benchmark.settings=[local]")
    rows = {}
    for fold in ("test", "validation"):
        experiment = micro(*grid, f"benchmark.fold={fold}")
        benchmark(experiment, tmp_path / "results", Silent())
        data = prepare_federation(experiment).data.sites
        rows[fold] = table(tmp_path / "results" / "results.csv")
        assert [row["fold"] for row in rows[fold]] == [fold] * len(data)
        assert [int(row["images"]) for row in rows[fold]] == [len(getattr(site, fold)) for site in data.values()]
    assert [row["auc"] for row in rows["test"]] != [row["auc"] for row in rows["validation"]]


def test_a_cell_has_the_numbers_of_the_same_simulation(micro: Micro, tmp_path: Path) -> None:
    settings = ("benchmark.seeds=[0]", "benchmark.methods=[ept]", "evaluation.baselines=[local, centralised]")
    benchmark(micro(*settings), tmp_path / "results", Silent())
    report = simulate(micro(*settings), tmp_path / "run", Silent())
    for row in table(tmp_path / "results" / "results.csv"):
        if row["setting"] in report["test"]:
            expected = report["test"][row["setting"]][row["site"]]
            assert float(row["auc"]) == pytest.approx(expected["auc"], abs=1e-12), row
            assert float(row["loss"]) == pytest.approx(expected["loss"], abs=1e-12), row


def test_a_folder_of_other_settings_or_of_something_else_is_refused(micro: Micro, tmp_path: Path) -> None:
    out = tmp_path / "results"
    small = (*SMALL, "benchmark.settings=[local]")
    benchmark(micro(*small), out, Silent())
    before = (out / "cells.jsonl").read_bytes()
    found = refusals(lambda: benchmark(micro(*small, "training.head_lr=0.5"), out, Silent()))
    assert set(found) == {"training.head_lr"}
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("keep me")
    assert set(refusals(lambda: benchmark(micro(*small), tmp_path / "thesis", Silent()))) == {"--out"}
    lines = [json.loads(line) | {"backbone": "another"} for line in before.decode().splitlines()]
    (out / "cells.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    more = micro(*small[:-1], "benchmark.settings=[local, federated+head]")
    assert set(refusals(lambda: benchmark(more, out, Silent()))) == {"model.weights"}
    for line in lines:
        del line["data"]
    (out / "cells.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "lacks data" in refusals(lambda: benchmark(more, out, Silent()))["cells.jsonl"]


def test_images_of_another_place_are_not_mixed_with_those_of_the_folder(
    micro: Micro, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "results"
    small = (*SMALL, "benchmark.settings=[local]")
    benchmark(micro(*small), out, Silent())
    before = (out / "cells.jsonl").read_bytes()
    prepare = simulations.benchmark_cell.prepare_federation

    def relabel(experiment: Experiment) -> Any:
        federation = prepare(experiment)
        for site in federation.data.sites.values():
            first, *others = site.train.records
            other = (first.labels[0] + 1) % len(federation.data.classes)
            site.train.records = (dataclasses.replace(first, labels=(other,)), *others)
        return federation

    monkeypatch.setattr(simulations.benchmark_cell, "prepare_federation", relabel)
    more = micro(*small[:-1], "benchmark.settings=[local, federated+head]")
    assert set(refusals(lambda: benchmark(more, out, Silent()))) == {"data.root"}
    assert (out / "cells.jsonl").read_bytes() == before


def test_a_method_that_fails_costs_its_own_cells_and_the_tables_hold_the_others(
    micro: Micro, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_short(*_arguments: Any, **_options: Any) -> None:
        raise MemoryError("no room for the moments")

    monkeypatch.setattr(simulations.benchmark_cell, "federate", run_short)
    report = benchmark(micro(*SMALL, "benchmark.settings=[local, federated]"), tmp_path / "results", Silent())
    assert (report["status"], report["trained"]) == ("failed", report["cells"] - 1)
    assert {row["setting"] for row in table(tmp_path / "results" / "results.csv")} == {"local"}


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        (("benchmark.methods=[ept, lorra]",), "benchmark.methods"),
        (("benchmark.methods=[linear]",), "benchmark.reference"),
        (("benchmark.methods=[ept, ept]",), "benchmark.methods"),
        (("benchmark.seeds=[1, 1]",), "benchmark.seeds"),
        (("benchmark={methods: [linear], reference: linear, settings: [centralised-prompts]}",), "benchmark.settings"),
        (("benchmark.settings=[centralized-prompts]",), "benchmark.settings.0"),
        (("benchmark.methods=[ept, vp]", "benchmark.variants={vp: ['model.method_options={pad: 32}']}"),
         "benchmark: vp: model.method_options.pad"),
        (("benchmark.methods=[ept, x]", "benchmark.variants={x: [model.tokns=1]}"), "benchmark: x: model.tokns"),
        (("benchmark.shots=[500]", "benchmark.methods=[ept]"), "benchmark: ept: data.shots"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_the_first_cell(
    overrides: tuple[str, ...], field: str, micro: Micro, tmp_path: Path
) -> None:
    assert field in refusals(lambda: benchmark(micro(*overrides), tmp_path / "results", Silent()))
    assert not (tmp_path / "results").exists()


def row(method: str, seed: int, site: str, value: float, setting: str = "federated") -> dict[str, Any]:
    run = {"method": method, "shots": 5, "sampling": None, "seed": seed, "setting": setting}
    return {**run, "site": site, "bytes_per_round": 10, **dict.fromkeys(SUMMARY_METRICS, value)}


def test_what_a_site_gains_is_measured_from_its_own_home_run_by_run() -> None:
    rows = [row("ept", seed, "a", 0.5 + seed / 10, "local") for seed in (0, 1, 2)]
    rows += [row("ept", seed, "a", 0.5 + seed / 10 + gain) for seed, gain in ((0, 0.1), (1, 0.2), (2, 0.3), (3, 0.9))]
    rows += [row("ept", 0, "b", float("nan"), "local"), row("ept", 0, "b", 0.5), row("vpt", 0, "a", 0.9)]
    gained, nothing = compare_with_home(rows)
    assert (gained["site"], gained["setting"], gained["runs"], gained["home"]) == (
        "a",
        "federated",
        3,
        pytest.approx(0.6),
    )
    # Student's 97.5 % quantile for two degrees of freedom is 4.303; the standard deviation is 0.1.
    assert (gained["low"], gained["high"]) == (
        pytest.approx(0.2 - 4.303 * 0.1 / 3**0.5, abs=1e-4), pytest.approx(0.2 + 4.303 * 0.1 / 3**0.5, abs=1e-4)
    )  # fmt: skip
    assert (nothing["site"], nothing["runs"]) == ("b", 0)
    assert math.isnan(nothing["difference"])


def test_the_mean_gain_is_over_sites_within_a_run_and_its_interval_over_runs() -> None:
    gains = {0: {"a": 0.1, "b": -0.3}, 1: {"a": 0.2, "b": 0.0}, 2: {"a": 0.3, "b": float("nan")}}
    rows = [row("ept", seed, site, 0.5, "local") for seed in gains for site in ("a", "b")]
    rows += [row("ept", seed, site, 0.5 + gain) for seed, own in gains.items() for site, gain in own.items()]
    rows += [row("ept", 3, "a", 0.9), row("linear", 0, "a", 0.9)]
    (gained,) = compare_means_with_home(rows)
    assert (gained["method"], gained["setting"], gained["runs"]) == ("ept", "federated", 3)
    assert (gained["sites"], gained["helped"]) == (2, 1)
    # Means of the runs: -0.1, 0.1 and 0.3 (site b is undefined there); their standard deviation is 0.2.
    assert (gained["home"], gained["difference"]) == (pytest.approx(0.5), pytest.approx(0.1))
    assert gained["low"] == pytest.approx(0.1 - 4.303 * 0.2 / 3**0.5, abs=1e-4)
    assert gained["high"] == pytest.approx(0.1 + 4.303 * 0.2 / 3**0.5, abs=1e-4)
    assert math.isnan(compare_means_with_home(rows[:2] + rows[6:8])[0]["low"])


def test_differences_are_paired_seed_by_seed() -> None:
    rows = [row("ept", 0, "a", 0.5), row("ept", 0, "b", 0.7), row("ept", 1, "a", 0.9)]
    rows += [
        row("vpt", 0, "a", 0.7),
        row("vpt", 1, "a", 0.9),
        row("vpt", 2, "a", 0.2),
        row("vpt", 3, "a", float("nan")),
    ]
    summary = {(r["method"], r["metric"]): r for r in summarise(rows, "ept")}
    ept, vpt = summary["ept", "auc"], summary["vpt", "auc"]
    assert (ept["mean"], ept["runs"], ept["difference"]) == (pytest.approx(0.75), 2, 0)
    assert (vpt["mean"], vpt["runs"]) == (pytest.approx(0.6), 3)
    assert (vpt["difference"], vpt["pairs"]) == (pytest.approx(0.05), 2)
    assert vpt["difference_sd"] == pytest.approx(0.1 / 2**0.5)
    assert draw_benchmark(summarise(rows, "ept")).startswith(b"\x89PNG")


def test_every_setting_has_a_place_in_the_picture_and_a_column_in_the_table() -> None:
    rows = [row("ept", 0, "a", 0.5, setting) for setting in SETTINGS]
    assert draw_benchmark(summarise(rows, "ept")).startswith(b"\x89PNG")
    assert tabulate_methods(rows).splitlines()[0].split(" | ")[1:] == [
        *(info.heading for info in list(SETTINGS.values())[:-1]),
        f"{SETTINGS['centralised-prompts'].heading} |",
    ]
