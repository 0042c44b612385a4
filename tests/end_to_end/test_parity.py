"""Tests that an experiment gives bit-identical prompts in one process and with Flower's own runtimes."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ept_fed.config.experiment import Experiment
from ept_fed.progress import Silent
from simulations.deployment.flower_processes import Loopback, LoopbackError
from simulations.engine.simulate import simulate

ROOT = Path(__file__).resolve().parents[2]
SITES = ("site-1", "site-2")
SETTINGS = (f"data.phantom_sites={len(SITES)}", "model.tokens=1", "evaluation.baselines=[]")
ROUNDS = ("round-000.safetensors", "round-001.safetensors", "round-002.safetensors")
LIMIT = 240.0


def prompts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "prompts").iterdir())}


@pytest.fixture
def expected(micro: Callable[..., Experiment], tmp_path: Path) -> dict[str, bytes]:
    """The prompts of every round from LocalGrid."""
    simulate(micro(*SETTINGS), tmp_path / "local", Silent())
    found = prompts(tmp_path / "local")
    assert tuple(found) == ROUNDS
    assert len(set(found.values())) == len(ROUNDS)
    return found


@pytest.fixture
def loopback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder = tmp_path / "loopback"
    folder.mkdir()
    with Loopback(folder) as processes:
        yield processes
    assert processes.descendants() == []


def run_config(experiment: Path, out: Path) -> dict[str, str]:
    return {"experiment": str(experiment), "set": " ".join(SETTINGS), "out": str(out)}


def test_a_superlink_and_two_supernodes_give_the_prompts_of_local_grid(
    loopback: Loopback, expected: dict[str, bytes], micro_file: Path, tmp_path: Path
) -> None:
    loopback.start_superlink()
    for site in SITES:
        loopback.start_supernode(site)
    loopback.run_app(ROOT, run_config(micro_file, tmp_path / "networked"), limit=LIMIT)
    assert prompts(tmp_path / "networked") == expected


@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'ept-fed[flower-simulation]'"
)
def test_flowers_simulation_gives_the_prompts_of_local_grid(
    loopback: Loopback, expected: dict[str, bytes], micro_file: Path, tmp_path: Path
) -> None:
    loopback.start_superlink(simulation=True)
    nodes = f"num-supernodes={len(SITES)} client-resources-num-cpus=1"
    config = run_config(micro_file, tmp_path / "simulated")
    loopback.run_app(ROOT, config, "--federation-config", nodes, limit=LIMIT)
    assert prompts(tmp_path / "simulated") == expected


def test_a_process_that_changed_its_session_ends_with_the_loopback(loopback: Loopback) -> None:
    code = "import os, subprocess, sys; subprocess.Popen(['sleep', '600'], start_new_session=True)"
    subprocess.run([sys.executable, "-c", code], env=loopback._environment, check=True)
    assert len(loopback.descendants()) == 1


def test_a_superlink_that_does_not_start_is_reported_with_its_log(
    loopback: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    (loopback.folder / "earlier.log").write_text("the reason")
    monkeypatch.setattr("simulations.deployment.flower_processes._is_healthy", lambda _address: False)
    with pytest.raises(LoopbackError, match=r"does not answer after 0 s[\s\S]*the reason"):
        loopback.start_superlink(limit=0)
