"""The same experiment gives the same prompts, bit for bit, in one process and under Flower's own runtimes."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ept_fed.config import Experiment
from ept_fed.reports.progress import Silent
from simulations.simulate import simulate

if TYPE_CHECKING:
    from tests.end_to_end.conftest import FlowerProcesses

SETTINGS = ("data.phantom_sites=2", "model.tokens=1", "evaluation.baselines=[]")
ROUNDS = ("round-000.safetensors", "round-001.safetensors", "round-002.safetensors")


def prompts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "prompts").iterdir())}


@pytest.fixture
def expected(micro: Callable[..., Experiment], tmp_path: Path) -> dict[str, bytes]:
    """The prompts of every round from LocalGrid."""
    simulate(micro(*SETTINGS), tmp_path / "local", Silent())
    return prompts(tmp_path / "local")


def test_a_superlink_and_two_supernodes_give_local_grids_prompts(
    flower: "FlowerProcesses", expected: dict[str, bytes], micro_file: Path, tmp_path: Path
) -> None:
    superlink = flower.start_superlink()
    for site in ("site-1", "site-2"):
        flower.start_supernode(superlink, site)
    out = tmp_path / "networked"
    run = flower.run_app({"experiment": str(micro_file), "set": " ".join(SETTINGS), "out": str(out)})
    assert run["status"] == "finished:completed", flower.logs()
    assert tuple(expected) == ROUNDS
    assert prompts(out) == expected


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray: pip install 'ept-fed[flower-simulation]'")
def test_flowers_simulation_gives_local_grids_prompts(
    flower: "FlowerProcesses", expected: dict[str, bytes], micro_file: Path, tmp_path: Path
) -> None:
    flower.start_superlink("--simulation")
    out = tmp_path / "ray"
    run = flower.run_app(
        {"experiment": str(micro_file), "set": " ".join(SETTINGS), "out": str(out)},
        "--federation-config",
        "num-supernodes=2 client-resources-num-cpus=1",
    )
    assert run["status"] == "finished:completed", flower.logs()
    assert prompts(out) == expected
