"""Tests that an experiment gives the same bits in one process and with Flower's own runtimes."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ept_fed.progress import Silent
from ept_fed.validation.load_experiment import load_experiment
from simulations.deployment.flower_processes import Loopback, LoopbackError
from simulations.engine.simulate import simulate
from tests.conftest import MICRO
from tests.needs import RAY

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
SITES = ("site-1", "site-2")
# After one round, the evaluation in a new process needs the state that the training left; tests/simulations/flower has
# two rounds, with sites that keep nothing else between messages.
SETTINGS = (f"data.phantom_sites={len(SITES)}", "model.tokens=1", "evaluation.baselines=[]", "federation.rounds=1")
LIMIT = 240.0


def outcome(folder: Path) -> dict[str, Any]:
    """Return the prompts of every round and what the sites reported; times and bytes depend on the runtime."""
    rounds = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    sites = [site for line in rounds for site in line["sites"].values()]
    reported = [
        {name: number for name, number in site[part].items() if name != "seconds"}
        for site in sites
        for part in ("train", "evaluation")
    ]
    prompts = {path.name: path.read_bytes() for path in sorted((folder / "prompts").iterdir())}
    return {**prompts, "examples": [site["examples"] for site in sites], "reported": reported}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("experiment") / "micro.yaml"
    path.write_text(yaml.safe_dump(MICRO))
    return path


@pytest.fixture(scope="module")
def expected(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What LocalGrid gives."""
    out = tmp_path_factory.mktemp("expected") / "local"
    simulate(load_experiment(experiment, SETTINGS), out, Silent())
    found = outcome(out)
    assert found["round-000.safetensors"] != found["round-001.safetensors"]
    assert len(found["reported"]) == 2 * len(SITES)
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
    loopback: Loopback, expected: dict[str, Any], experiment: Path, tmp_path: Path
) -> None:
    loopback.start_superlink()
    for site in SITES:
        loopback.start_supernode(site)
    loopback.run_app(ROOT, run_config(experiment, tmp_path / "networked"), limit=LIMIT)
    assert outcome(tmp_path / "networked") == expected


@RAY.mark
def test_flowers_simulation_gives_the_prompts_of_local_grid(
    loopback: Loopback, expected: dict[str, Any], experiment: Path, tmp_path: Path
) -> None:
    loopback.start_superlink(simulation=True)
    nodes = f"num-supernodes={len(SITES)} client-resources-num-cpus=1"
    config = run_config(experiment, tmp_path / "simulated")
    loopback.run_app(ROOT, config, "--federation-config", nodes, limit=LIMIT)
    assert outcome(tmp_path / "simulated") == expected


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
