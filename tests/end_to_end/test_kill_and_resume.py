"""Test that a repeatedly killed run ends with the same prompts as an uninterrupted run."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from ept_fed.progress import Silent
from ept_fed.validation.load_experiment import load_experiment
from tests.conftest import MICRO


def run_simulation(config: Path, out: Path) -> None:
    """Do what `ept-fed simulate CONFIG --out OUT --resume` does, without its display, in a process to be killed."""
    import torch

    from simulations.engine.simulate import simulate

    torch.set_num_threads(1)
    report = simulate(load_experiment(config, []), out, Silent(), resume=True)
    assert report["status"] == "done"


@pytest.fixture(scope="module")
def forkserver() -> multiprocessing.context.ForkServerContext:
    """Start processes with torch and the simulation already imported, so that kills hit the work, not the imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["simulations.engine.simulate", "tests.end_to_end.test_kill_and_resume"])
    first = context.Process(target=int)
    first.start()
    first.join(300)
    return context


def write_experiment(folder: Path, rounds: int) -> Path:
    path = folder / "micro.yaml"
    federation = {"rounds": rounds, "strategy": "fedadam", "sites_per_round": 2}
    path.write_text(yaml.safe_dump({**MICRO, "federation": federation, "personalisation": {"ditto": 0.1}}))
    return path


def prompts_of(out: Path) -> dict[str, np.ndarray]:
    return {path.name: load_file(path)["sinks"] for path in sorted((out / "prompts").iterdir())}


@pytest.mark.parametrize(
    ("kills", "rounds", "stages"),
    [
        pytest.param(4, 6, 2, marks=pytest.mark.integration, id="4 kills"),
        pytest.param(20, 12, 3, marks=pytest.mark.faults, id="20 kills"),
    ],
)
def test_kills_at_random_moments_change_no_bit(
    forkserver: multiprocessing.context.ForkServerContext, tmp_path: Path, kills: int, rounds: int, stages: int
) -> None:
    config = write_experiment(tmp_path, rounds)
    whole = forkserver.Process(target=run_simulation, args=(config, tmp_path / "whole"))
    started = time.monotonic()
    whole.start()
    whole.join(300)
    seconds = time.monotonic() - started
    assert whole.exitcode == 0
    expected = prompts_of(tmp_path / "whole")
    assert len(expected) == rounds + 1
    rng, done, runs = np.random.default_rng(0), 0, 0
    # One kill in each part of a whole run's time, so that they hit its beginning, its rounds and its end.
    moments = seconds * (np.arange(kills) + rng.uniform(size=kills)) / kills
    seen_rounds: set[int] = set()
    while done < kills:
        out = tmp_path / f"run-{runs}"
        runs += 1
        while True:
            process = forkserver.Process(target=run_simulation, args=(config, out))
            process.start()
            if done < kills:
                process.join(moments[done])
            else:
                process.join(300)
            if process.exitcode is not None:
                assert process.exitcode == 0
                if done < kills:
                    # A run that continues is shorter, and another may be faster.
                    moments[done] *= 0.7
                break
            os.kill(process.pid, signal.SIGKILL)
            process.join(60)
            done += 1
            seen_rounds.add(len(list(out.glob("checkpoints/*.safetensors"))))
        assert all(np.array_equal(expected[name], prompts) for name, prompts in prompts_of(out).items())
        assert list(prompts_of(out)) == list(expected)
        assert tables_of(out) == tables_of(tmp_path / "whole")
        lines = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
        assert [line["round"] for line in lines] == list(range(1, rounds + 1))
        assert not [path for path in out.rglob(".*") if path.is_file()]
    assert len(seen_rounds) >= stages, f"all kills were in rounds {seen_rounds}"


def tables_of(out: Path) -> dict[str, str]:
    """Return the predictions of every site, to the last digit."""
    return {path.parent.name: path.read_text() for path in sorted((out / "sites").glob("*/predictions.csv"))}
