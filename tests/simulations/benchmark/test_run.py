"""`ept-fed benchmark`: every cell is trained once, no cell is lost, and its numbers equal those of `simulate`."""

import csv
import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import simulations.benchmark.cell
import simulations.benchmark.run
from ept_fed.config.benchmark import SETTINGS
from ept_fed.config.experiment import Experiment
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.evaluation.metrics import classification_metrics
from ept_fed.progress import Silent
from ept_fed.reports.run.run_folder import RunFolder
from simulations.benchmark.grid import list_cells
from simulations.benchmark.run import benchmark
from simulations.engine.baselines import train_local
from simulations.engine.simulate import simulate
from simulations.engine.virtual_sites import prepare_federation
from tests.simulations.benchmark.failed_training import average_nothing

Micro = Callable[..., Experiment]
SMALL = ("federation.rounds=1", "benchmark.seeds=[0]", "benchmark.methods=[ept, linear]", "data.phantom_sites=2")
TWO_SETTINGS = (*SMALL, "benchmark.settings=[local, federated]")


def titles(folder: Path) -> list[str]:
    return [json.loads(line)["title"] for line in (folder / "cells.jsonl").read_text().splitlines()]


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def column(path: Path, name: str) -> list[str]:
    return [row[name] for row in table(path)]


def relabelled(experiment: Experiment, **options: Any) -> Any:
    """Return a federation in which one training image of each site has another label."""
    federation = prepare_federation(experiment, **options)
    for site in federation.data.sites.values():
        first, *others = site.train.records
        other = (first.labels[0] + 1) % len(federation.data.classes)
        site.train.records = (dataclasses.replace(first, labels=(other,)), *others)
    return federation


def refusals(call: Callable[[], Any]) -> dict[str, str]:
    with pytest.raises(InputRefusedError) as refusal:
        call()
    return {problem.field: problem.fix for problem in refusal.value.problems}


@pytest.fixture(scope="module")
def finished(shared_micro: Micro, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished benchmark of `TWO_SETTINGS`, for reading only."""
    out = tmp_path_factory.mktemp("finished") / "results"
    benchmark(shared_micro(*TWO_SETTINGS), out, Silent())
    return out


@pytest.fixture
def finished_copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "results"))


@pytest.mark.integration
@pytest.mark.usefixtures("drawn")
def test_cells_are_trained_once_and_a_grown_grid_trains_what_is_new(
    micro: Micro, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "results"
    report = benchmark(micro(*SMALL), out, Silent())
    assert (report["status"], report["cells"], report["trained"]) == ("done", 7, 7)
    assert len(set(titles(out))) == 7
    rows = table(out / "results.csv")
    assert len(rows) == 7 * 2
    assert (out / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert not (out / "unfinished").exists()
    sent = {(row["method"], row["setting"]): int(row["bytes_per_round"]) for row in rows}
    assert sent["ept", "local"] == sent["ept", "centralised"] == 0
    assert 0 < sent["ept", "federated"] < sent["ept", "federated+head"]
    before = (out / "cells.jsonl").read_bytes()
    grown = micro(*TWO_SETTINGS, "benchmark.methods=[ept, linear, bias]")
    report = benchmark(grown, out, Silent())
    assert (report["cells"], report["trained"]) == (5, 2)
    assert (out / "cells.jsonl").read_bytes().startswith(before)
    monkeypatch.setattr(
        simulations.benchmark.cell, "prepare_federation", lambda _e: pytest.fail("nothing is left to do")
    )
    assert benchmark(grown, out, Silent())["trained"] == 0
    assert {row["method"] for row in table(out / "summary.csv")} == {"ept", "linear", "bias"}


def test_what_the_data_lack_is_said_once_for_all_cells(micro: Micro, tmp_path: Path) -> None:
    notes: list[str] = []

    class Notes(Silent):
        def on_note(self, sentence: str) -> None:
            notes.append(sentence)

    grid = micro(*SMALL, "benchmark.settings=[local]", "data.test_shots=1")
    benchmark(grid, tmp_path / "results", Notes())
    thinned = [note.split(" is tested on ")[0] for note in notes if " is tested on " in note]
    assert thinned == ["site-1", "site-2"]


@pytest.mark.integration
def test_a_part_is_trained_now_and_the_tables_hold_all_that_is_finished(micro: Micro, tmp_path: Path) -> None:
    out, grid = tmp_path / "results", micro(*TWO_SETTINGS)
    report = benchmark(grid, out, Silent(), methods=["linear"], settings=["local"])
    assert (report["status"], report["cells"], report["trained"]) == ("done", 1, 1)
    assert all(math.isnan(row["difference"]) and not row["pairs"] for row in report["summary"])
    report = benchmark(grid, out, Silent(), methods=["e*"], settings=["local"], analyse=True)
    assert (report["cells"], report["trained"]) == (1, 1)
    assert {(row["method"], row["setting"]) for row in report["summary"]} == {("linear", "local"), ("ept", "local")}
    assert set(column(out / "analysis.csv", "method")) == {"ept"}
    report = benchmark(grid, out, Silent(), methods=["bias"], settings=["centralised"])
    assert (report["cells"], report["trained"]) == (1, 1)
    for name in ("results.csv", "summary.csv"):
        assert set(column(out / name, "method")) == {"linear", "ept", "bias"}
    assert benchmark(grid, out, Silent())["cells"] == 3


def test_only_what_was_asked_for_says_whether_it_failed(
    micro: Micro, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, grid = tmp_path / "results", micro(*SMALL, "benchmark.settings=[local]")
    with monkeypatch.context() as patch:
        patch.setattr(
            simulations.benchmark.cell, "_train_local", average_nothing(simulations.benchmark.cell._train_local)
        )
        assert benchmark(grid, out, Silent(), methods=["linear"])["status"] == "failed"
    assert benchmark(grid, out, Silent(), methods=["ept"])["status"] == "done"
    assert benchmark(grid, out, Silent())["status"] == "failed"


def test_gains_go_when_no_row_has_one(micro: Micro, finished_copy: Path) -> None:
    assert (finished_copy / "gains.csv").exists()
    federated = micro(*SMALL, "benchmark.methods=[ept]", "benchmark.settings=[federated]")
    assert benchmark(federated, finished_copy, Silent())["trained"] == 0
    assert not (finished_copy / "gains.csv").exists()


@pytest.mark.parametrize(
    ("seconds", "remaining", "processes", "left"),
    [
        (10, 0, 1, 0),
        (10, 5, 1, 50),
        (10, 0, 4, 0),
        (10, 9, 2, 42.5),
        (10, 40, 4, 96.25),
        # A process without remaining cells does not reduce the time of the others.
        (10, 1, 4, 5),
        (10, 2, 4, 5),
    ],
)
def test_time_left_is_the_cells_left_shared_by_the_processes_that_others_are_half_through(
    seconds: float, remaining: int, processes: int, left: float
) -> None:
    assert simulations.benchmark.run._estimate(seconds, remaining, processes) == pytest.approx(left)


def test_a_benchmark_that_is_killed_goes_on_with_the_cell_it_was_in(
    micro: Micro, tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = tmp_path / "killed"

    def stop(*_arguments: Any, **_options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(simulations.benchmark.cell, "federate", stop)
        with pytest.raises(KeyboardInterrupt):
            benchmark(micro(*TWO_SETTINGS), killed, Silent())
    assert len(titles(killed)) == len({row["setting"] for row in table(killed / "results.csv")}) == 1
    with (killed / "cells.jsonl").open("a") as file:
        file.write('{"key": "half a li')
    assert benchmark(micro(*TWO_SETTINGS), killed, Silent())["trained"] == 2
    assert titles(killed) == titles(finished)
    first, again = table(finished / "results.csv"), table(killed / "results.csv")
    assert [row | {"cell_seconds": ""} for row in first] == [row | {"cell_seconds": ""} for row in again]


def test_a_seed_whose_images_do_not_suffice_costs_its_own_cells_only(
    micro: Micro, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (*SMALL, "benchmark.methods=[ept]", "benchmark.settings=[local]")
    prepare = simulations.benchmark.cell.prepare_federation

    def refuse(experiment: Experiment, **options: Any) -> Any:
        if experiment.seed == 1:
            raise InputRefusedError([Problem("data.shots", 2, "too many")])
        return prepare(experiment, **options)

    monkeypatch.setattr(simulations.benchmark.cell, "prepare_federation", refuse)
    report = benchmark(micro(*settings, "benchmark.seeds=[0, 1, 2]"), tmp_path / "results", Silent())
    assert (report["status"], report["cells"], report["trained"]) == ("failed", 3, 2)
    assert [title.split(", ")[2] for title in titles(tmp_path / "results")] == ["seed 0", "seed 2"]
    assert {row["seed"] for row in table(tmp_path / "results" / "results.csv")} == {"0", "2"}


def test_settings_are_chosen_on_other_images_than_those_that_are_reported(micro: Micro, tmp_path: Path) -> None:
    grid = (*SMALL, "benchmark.methods=[ept]", "benchmark.settings=[local]")
    rows = {}
    for fold in ("test", "validation"):
        experiment = micro(*grid, f"benchmark.fold={fold}")
        benchmark(experiment, tmp_path / "results", Silent())
        data = prepare_federation(experiment).data.sites
        rows[fold] = table(tmp_path / "results" / "results.csv")
        assert [row["fold"] for row in rows[fold]] == [fold] * len(data)
        assert [int(row["images"]) for row in rows[fold]] == [len(getattr(site, fold)) for site in data.values()]
    assert [row["auc"] for row in rows["test"]] != [row["auc"] for row in rows["validation"]]


@pytest.mark.integration
def test_a_cell_has_the_numbers_of_the_same_simulation(micro: Micro, tmp_path: Path) -> None:
    settings = (*SMALL, "federation.rounds=2", "benchmark.methods=[ept]", "evaluation.baselines=[local, centralised]")
    benchmark(micro(*settings), tmp_path / "results", Silent())
    report = simulate(micro(*settings), tmp_path / "run", Silent())
    for row in table(tmp_path / "results" / "results.csv"):
        if row["setting"] in report["test"]:
            expected = report["test"][row["setting"]][row["site"]]
            assert float(row["auc"]) == pytest.approx(expected["auc"], abs=1e-12), row
            assert float(row["loss"]) == pytest.approx(expected["loss"], abs=1e-12), row


def test_a_folder_of_other_settings_or_of_something_else_is_refused(
    micro: Micro, finished_copy: Path, tmp_path: Path
) -> None:
    out = finished_copy
    before = (out / "cells.jsonl").read_bytes()
    found = refusals(lambda: benchmark(micro(*TWO_SETTINGS, "training.head_lr=0.5"), out, Silent()))
    assert set(found) == {"training.head_lr"}
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("keep me")
    assert set(refusals(lambda: benchmark(micro(*TWO_SETTINGS), tmp_path / "thesis", Silent()))) == {"--out"}
    lines = [json.loads(line) | {"backbone": "another"} for line in before.decode().splitlines()]
    (out / "cells.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    more = micro(*SMALL, "benchmark.settings=[local, federated, federated+head]")
    assert set(refusals(lambda: benchmark(more, out, Silent()))) == {"model.weights"}
    for line in lines:
        del line["data"]
    (out / "cells.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "lacks data" in refusals(lambda: benchmark(more, out, Silent()))["cells.jsonl"]
    other = [json.loads(line) | {"schema": 1} for line in before.decode().splitlines()]
    (out / "cells.jsonl").write_text("".join(json.dumps(line) + "\n" for line in other))
    assert "has schema 1" in refusals(lambda: benchmark(micro(*TWO_SETTINGS), out, Silent()))["cells.jsonl"]


def test_a_method_that_fails_costs_its_own_cells_and_the_tables_hold_the_others(
    micro: Micro, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_short(*_arguments: Any, **_options: Any) -> None:
        raise MemoryError("no room for the moments")

    monkeypatch.setattr(simulations.benchmark.cell, "federate", run_short)
    report = benchmark(micro(*TWO_SETTINGS), tmp_path / "results", Silent())
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


def test_a_choice_is_that_of_simulate_and_gives_the_numbers_of_its_two_models(micro: Micro, tmp_path: Path) -> None:
    own = ("federation.rounds=1", "data.phantom_sites=2", "benchmark.methods=[ept]", "benchmark.seeds=[0]")
    out = tmp_path / "results"
    report = benchmark(micro(*own, "benchmark.settings=[chosen]"), out, Silent())
    assert (report["trained"], report["cells"], len(titles(out))) == (1, 3, 3)
    alone = tmp_path / "alone"
    benchmark(micro(*own, "benchmark.settings=[local, federated+head]"), alone, Silent())

    def numbers(folder: Path) -> dict[tuple[str, str], dict[str, str]]:
        rows = [row for row in table(folder / "results.csv") if row["setting"] != "chosen"]
        return {(row["setting"], row["site"]): row | {"cell_seconds": ""} for row in rows}

    assert numbers(out) == numbers(alone)
    run = simulate(
        micro(*own, "benchmark={}", "federation.share=prompts+head", "personalisation.choose=true"),
        tmp_path / "run",
        Silent(),
    )
    for row in table(out / "results.csv"):
        if row["setting"] == "chosen":
            assert float(row["auc"]) == run["test"]["chosen"][row["site"]]["auc"]
            assert row["choice"] == run["choices"][row["site"]]["name"]
            assert row["pooled_auc"] == "nan"
        else:
            assert row["choice"] == ""


def test_pooled_metrics_are_those_of_a_sites_model_on_the_test_images_of_all_sites(
    micro: Micro, tmp_path: Path
) -> None:
    experiment = micro(
        "federation.rounds=1",
        "data.phantom_sites=2",
        "benchmark.methods=[ept]",
        "benchmark.seeds=[0]",
        "benchmark.settings=[local, federated+head]",
    )
    benchmark(experiment, tmp_path / "results", Silent())
    rows = table(tmp_path / "results" / "results.csv")
    pooled = {setting: [row["pooled_auc"] for row in rows if row["setting"] == setting] for setting in SETTINGS}
    assert len(set(pooled["federated+head"])) == 1
    assert len(set(pooled["local"])) == 2
    cell = next(cell for cell in list_cells(experiment) if cell.setting == "local")
    federation = prepare_federation(cell.experiment)
    sites = federation.data.sites.values()
    local = train_local(federation, RunFolder(tmp_path / "run"), Silent())
    for row in (row for row in rows if row["setting"] == "local"):
        labels = np.concatenate([data.test.labels.numpy() for data in sites])
        with local[row["site"]].hold() as held:
            scores = np.concatenate([held.predict(data.test) for data in sites])
        quality = classification_metrics(labels, scores, "single_label")
        assert float(row["pooled_auc"]) == quality["auc"]
        assert float(row["pooled_balanced_accuracy"]) == quality["balanced_accuracy"]
