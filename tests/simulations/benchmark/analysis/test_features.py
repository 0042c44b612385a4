"""`ept-fed benchmark --analyse`: features of the models in the table, with each cell analysed once."""

import csv
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import simulations.benchmark.cell
from ept_fed.config.experiment import Experiment
from ept_fed.errors import InputRefusedError
from ept_fed.evaluation.feature_table import ALL_CLASSES, ALL_SITES
from ept_fed.evaluation.features import CLASS_MEASURES, MEASURES, measure_features
from ept_fed.progress import Silent
from ept_fed.storage.files import dump_json
from simulations.benchmark.analysis.feature_record import FeatureRecord, read_record
from simulations.benchmark.grid import list_cells
from simulations.benchmark.run import benchmark
from simulations.engine.virtual_sites import prepare_federation
from tests.simulations.benchmark.failed_training import average_nothing

Micro = Callable[..., Experiment]
GRID = (
    "federation.rounds=1",
    "data.phantom_sites=2",
    "benchmark.seeds=[0]",
    "benchmark.settings=[federated+head]",
    "benchmark.methods=[ept, vpt]",
    "training.prompt_lr=1.0",
    "training.precision=float32",
)


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def on_note(self, sentence: str) -> None:
        self.notes.append(sentence)


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def records(out: Path) -> dict[str, FeatureRecord]:
    """Return the records, by the method of their cell."""
    methods = {line["key"]: line["method"] for line in map(json.loads, (out / "cells.jsonl").open())}
    return {methods[path.stem]: read_record(path) for path in (out / "analysis").glob("*.safetensors")}


@pytest.fixture(scope="module")
def made(shared_micro: Micro, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an analysed grid, with all charts, for reading only."""
    out = tmp_path_factory.mktemp("analysed") / "results"
    report = benchmark(shared_micro(*GRID), out, Silent(), analyse=True)
    assert (report["status"], report["trained"], report["analysis"]) == ("done", 2, str(out / "analysis.html"))
    return out


@pytest.fixture
def analysed(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "results"))


def test_the_table_holds_every_measure_of_the_features_that_are_kept(analysed: Path, micro: Micro) -> None:
    rows = table(analysed / "analysis.csv")
    data = prepare_federation(micro(*GRID)).data
    places = [ALL_SITES, *data.sites]
    assert len(rows) == 2 * 2 * len(places) * (len(MEASURES) + len(data.classes) * len(CLASS_MEASURES))
    found = {tuple(row[key] for key in ("method", "when", "site", "class", "measure")): row["value"] for row in rows}
    for method, record in records(analysed).items():
        assert len(record.labels) == sum(len(site.test) for site in data.sites.values())
        for moment, features in record.features.items():
            for place, site in enumerate(places):
                chosen = record.places >= 0 if place == 0 else record.places == place - 1
                for label, name, value in measure_features(features[chosen], record.labels[chosen], data.classes)[0]:
                    told = float(found[method, moment, site, label or ALL_CLASSES, name])
                    assert told == value or (math.isnan(told) and math.isnan(value))


def test_before_is_the_start_and_after_is_the_model_whose_numbers_are_in_the_table(
    analysed: Path, micro: Micro
) -> None:
    for cell in list_cells(micro(*GRID)):
        record = records(analysed)[cell.method]
        federation = prepare_federation(cell.experiment)
        expected = []
        for data in federation.data.sites.values():
            with federation.create_site(data).hold() as held:
                model = held.model.eval()
                expected += [model.forward_features(batch).detach().numpy() for batch, _ in data.test.batches(32)]
        np.testing.assert_array_equal(record.features["before"], np.concatenate(expected))
        assert not np.array_equal(record.features["before"], record.features["after"])
        assert (record.scaling is not None) == (cell.method == "ept")
        lines = [json.loads(line) for line in (analysed / "cells.jsonl").read_text().splitlines()]
        assert record.numbers == {line["key"]: line["sites"] for line in lines}[cell.key]


@pytest.mark.integration
def test_looking_changes_no_number_and_a_finished_cell_is_trained_again_for_it_once(
    analysed: Path, micro: Micro, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, notes = tmp_path / "later", Notes()
    assert benchmark(micro(*GRID), out, Silent())["analysis"] is None
    assert not (out / "analysis").exists()
    before = (out / "cells.jsonl").read_bytes()
    assert benchmark(micro(*GRID), out, notes, analyse=True)["trained"] == 2
    assert (out / "cells.jsonl").read_bytes() == before
    assert not any("cells.jsonl" in note for note in notes.notes)
    for name in ("results.csv", "summary.csv"):
        timeless = [row | {"cell_seconds": ""} for row in table(analysed / name)]
        assert [row | {"cell_seconds": ""} for row in table(out / name)] == timeless
    assert (out / "analysis.csv").read_bytes() == (analysed / "analysis.csv").read_bytes()
    kept = {path.name: path.read_bytes() for path in (out / "analysis").glob("*.safetensors")}
    assert kept == {path.name: path.read_bytes() for path in (analysed / "analysis").glob("*.safetensors")}
    page = (out / "analysis.html").read_bytes()
    (out / "analysis.html").unlink()
    monkeypatch.setattr(
        simulations.benchmark.cell, "prepare_federation", lambda _e: pytest.fail("nothing is left to do")
    )
    assert benchmark(micro(*GRID), out, Silent(), analyse=True)["trained"] == 0
    assert (out / "analysis.html").read_bytes() == page


def test_a_model_that_does_not_come_out_as_before_is_said(analysed: Path, micro: Micro) -> None:
    lines = [json.loads(line) for line in (analysed / "cells.jsonl").read_text().splitlines()]
    site = next(iter(lines[0]["sites"].values()))
    site["auc"] += 0.25
    (analysed / "cells.jsonl").write_text("".join(dump_json(line) + "\n" for line in lines))
    notes = Notes()
    assert benchmark(micro(*GRID), analysed, notes, analyse=True)["trained"] == 0
    (said,) = (note for note in notes.notes if "cells.jsonl" in note)
    assert "ept, 2 shots" in said
    assert "AUC differs by up to 0.25" in said
    assert "AUC differs by up to 0.25" in (analysed / "analysis.html").read_text()


def test_damaged_features_are_refused_before_anything_is_trained(analysed: Path, micro: Micro) -> None:
    path = next((analysed / "analysis").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputRefusedError, match="remove the file, and the cell is trained again"):
        benchmark(micro(*GRID, "benchmark.methods=[ept, vpt, bias]"), analysed, Silent(), analyse=True)
    assert len((analysed / "cells.jsonl").read_text().splitlines()) == 2


def test_the_page_loads_nothing_and_says_that_it_holds_images(analysed: Path) -> None:
    page = (analysed / "analysis.html").read_text()
    assert not re.findall(r"(?:src|href)=\"(?!data:image/png;base64,)", page)
    images = re.findall(r"<img ([^>]*)>", page)
    assert len(images) == 1 + 2 + 1
    assert all(re.search(r'alt="[^"]{40,}"', image) for image in images)
    assert "shows images of the sites" in page
    for drawn in ("overview", "features/ept", "features/vpt", "scaling/ept"):
        assert (analysed / "analysis" / f"{drawn}.png").read_bytes().startswith(b"\x89PNG")
    assert not (analysed / "analysis" / "scaling" / "vpt.png").exists()


@pytest.mark.integration
def test_methods_without_a_cell_and_cells_without_a_model_are_said(
    micro: Micro, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (*GRID[:3], "benchmark.methods=[ept, linear]", "benchmark.settings=[federated, local]")
    notes = Notes()
    benchmark(micro(*settings), tmp_path / "results", notes, analyse=True)
    assert "analysis: linear has no cell in setting federated, and is not analysed" in notes.notes
    assert set(records(tmp_path / "results")) == {"ept"}
    federated = average_nothing(simulations.benchmark.cell._train_federated)
    monkeypatch.setattr(simulations.benchmark.cell, "_train_federated", federated)
    report = benchmark(micro(*GRID), tmp_path / "failed", notes, analyse=True)
    assert (report["status"], report["analysis"]) == ("failed", None)
    assert "analysis: no cell's features were stored; see the notes above" in notes.notes
    assert benchmark(micro(*GRID), tmp_path / "failed", notes, analyse=True)["trained"] == 0


@pytest.mark.integration
def test_rows_named_by_a_pattern_are_analysed_and_those_with_other_images_are_said(
    micro: Micro, tmp_path: Path
) -> None:
    rows = (
        "{row plain: [], row tokens: [model.tokens=1], row shot: [data.shots=1], row other: [data.test_fraction=0.4]}"
    )
    grid = f"benchmark={{methods: ['row *'], seeds: [0], settings: [local], reference: row plain, variants: {rows}}}"
    notes = Notes()
    report = benchmark(micro(*GRID[:2], grid), tmp_path / "results", notes, methods=["row *"], analyse=True)
    assert report["analysis"] is not None
    assert [note for note in notes.notes if "not analysed" in note] == [
        "analysis: row other has other images than row plain (data.test_fraction), and is not analysed"
    ]
    assert {row["method"] for row in table(tmp_path / "results" / "analysis.csv")} == {
        "row plain",
        "row tokens",
        "row shot",
    }


def test_sites_without_an_image_to_look_at_are_said(micro: Micro, tmp_path: Path) -> None:
    nothing = ("data.validation_shots=null", "data.validation_fraction=0", "benchmark.fold=validation")
    notes = Notes()
    report = benchmark(micro(*GRID[:4], *nothing, "benchmark.methods=[ept]"), tmp_path / "none", notes, analyse=True)
    assert report["status"] == "done"
    assert any("no class has two images: nothing is measured" in note for note in notes.notes)
    assert all(math.isnan(float(row["value"])) for row in table(tmp_path / "none" / "analysis.csv"))


def test_images_of_several_classes_are_refused(micro: Micro, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = simulations.benchmark.cell.prepare_federation

    def several(experiment: Experiment, **options: Any) -> Any:
        federation = prepare(experiment, **options)
        object.__setattr__(federation.data, "task", "multi_label")
        return federation

    monkeypatch.setattr(simulations.benchmark.cell, "prepare_federation", several)
    with pytest.raises(InputRefusedError, match="no class centre of its own"):
        benchmark(micro(*GRID), tmp_path / "results", Silent(), analyse=True)
    assert not (tmp_path / "results").exists()
