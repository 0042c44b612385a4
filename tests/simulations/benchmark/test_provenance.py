"""Cells are added only to cells with the same arithmetic, backbones and images."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

import ept_fed
import simulations.benchmark.cell
from ept_fed.config.experiment import Experiment
from ept_fed.progress import Silent
from simulations.benchmark.grid import list_cells
from simulations.benchmark.run import benchmark
from tests.simulations.benchmark.test_run import refusals, relabelled

Micro = Callable[..., Experiment]
SMALL = (
    "federation.rounds=1",
    "data.phantom_sites=2",
    "benchmark.seeds=[0]",
    "benchmark.methods=[ept]",
    "benchmark.settings=[local]",
)
BOTH = "benchmark.settings=[local, federated+head]"


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "cells.jsonl").read_text().splitlines()]


def compute_in_bfloat16(monkeypatch: pytest.MonkeyPatch, able: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": able})


@pytest.fixture
def weights(tmp_path: Path) -> Callable[[str, int], Path]:
    """Return a function that writes the weights of a small timm model and returns their path."""

    def write(name: str, seed: int) -> Path:
        torch.manual_seed(seed)
        save_file(timm.create_model(name, num_classes=0).state_dict(), tmp_path / f"{name}.safetensors")
        return tmp_path / f"{name}.safetensors"

    return write


@pytest.fixture(scope="module")
def one_cell(shared_micro: Micro, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished benchmark of `SMALL`, for reading only."""
    out = tmp_path_factory.mktemp("one-cell") / "results"
    benchmark(shared_micro(*SMALL), out, Silent())
    return out


@pytest.fixture
def one_cell_copy(one_cell: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(one_cell, tmp_path / "results"))


def test_machines_that_fast_means_other_numbers_on_do_not_share_cells(
    micro: Micro, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, cpu = tmp_path / "results", "model.device=cpu"
    compute_in_bfloat16(monkeypatch, able=False)
    benchmark(micro(*SMALL, cpu, "training.precision=fast"), out, Silent())
    (cell,) = list_cells(micro(*SMALL, cpu, "training.precision=float32"))
    assert [line["key"] for line in lines(out)] == [cell.key]
    compute_in_bfloat16(monkeypatch, able=True)
    refused = refusals(lambda: benchmark(micro(*SMALL, cpu, "training.precision=fast"), out, Silent()))
    assert "have float32; set it so" in refused["training.precision"]
    rows = (
        "benchmark={methods: [ept, fast], seeds: [0], settings: [local], variants: {fast: [training.precision=fast]}}"
    )
    varied = micro(*SMALL[:2], cpu, "training.precision=float32", rows)
    assert benchmark(varied, out, Silent())["trained"] == 1
    compute_in_bfloat16(monkeypatch, able=False)
    assert benchmark(varied, out, Silent())["trained"] == 0
    assert len(lines(out)) == 2


def test_a_line_says_what_it_was_computed_with(one_cell: Path) -> None:
    ((with_, sources),) = ((line["computed_with"], line["sources"]) for line in lines(one_cell))
    versions = {"ept_fed": ept_fed.__version__, "torch": torch.__version__, "timm": timm.__version__}
    assert versions.items() <= with_.items()
    assert with_["processor"]
    assert with_["threads"] == torch.get_num_threads()
    assert sources["model"] == "test_vit, 64 pixels, random weights"
    assert sources["data"]["seed"] == 0
    assert "root" not in sources["data"]


@pytest.mark.integration
def test_a_grid_of_two_backbones_goes_on_and_each_is_held_against_its_own(
    micro: Micro, tmp_path: Path, weights: Callable[[str, int], Path]
) -> None:
    out, (one, two) = tmp_path / "results", (weights("test_vit", 1), weights("test_vit2", 2))
    rows = (
        "benchmark={methods: [one, two], seeds: [0], settings: [local], reference: one, variants: {"
        f"one: [model.backbone=test_vit, model.weights={one}], two: [model.backbone=test_vit2, model.weights={two}]}}}}"
    )
    assert benchmark(micro(*SMALL[:2], rows), out, Silent())["trained"] == 2
    assert len({line["backbone"] for line in lines(out)}) == 2
    report = benchmark(micro(*SMALL[:2], rows, BOTH), out, Silent(), methods=["two"])
    assert (report["status"], report["trained"]) == ("done", 1)
    weights("test_vit2", 3)
    more = micro(*SMALL[:2], rows, "benchmark.settings=[local, federated+head, federated]")
    before = (out / "cells.jsonl").read_bytes()
    assert set(refusals(lambda: benchmark(more, out, Silent(), methods=["two"]))) == {"model.weights"}
    assert (out / "cells.jsonl").read_bytes() == before
    assert benchmark(more, out, Silent(), methods=["one"])["trained"] == 2


def test_weights_that_are_given_are_not_added_to_those_that_were_drawn(
    micro: Micro, one_cell: Path, weights: Callable[[str, int], Path]
) -> None:
    given = micro(*SMALL[:-1], BOTH, f"model.weights={weights('test_vit', 1)}")
    refused = refusals(lambda: benchmark(given, one_cell, Silent()))
    assert set(refused) == {"model.weights"}
    assert "has results of random weights" in refused["model.weights"]


@pytest.mark.parametrize(
    "grown",
    [
        (BOTH,),
        ("benchmark.seeds=[1]",),
        ("benchmark.shots=[1]",),
        ("benchmark.samplings=[4]", "benchmark.seeds=[1]"),
    ],
)
def test_images_of_another_place_are_not_mixed_with_those_of_the_folder(
    grown: tuple[str, ...], micro: Micro, one_cell_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = one_cell_copy
    before = (out / "cells.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(simulations.benchmark.cell, "prepare_federation", relabelled)
        assert set(refusals(lambda: benchmark(micro(*SMALL, *grown), out, Silent()))) == {"data.root"}
    assert (out / "cells.jsonl").read_bytes() == before
    assert benchmark(micro(*SMALL, *grown), out, Silent())["trained"] >= 1
