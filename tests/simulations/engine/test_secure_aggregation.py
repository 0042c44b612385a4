"""A simulation under secure aggregation, with real sites and temporary certificates, against a plaintext run."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from ept_fed.config.experiment import Experiment
from ept_fed.progress import Silent
from simulations.engine.simulate import simulate
from tests.masked_runs import train_as_masked

MASKED = ("federation={rounds: 2, norm_bound: null, secure_aggregation: {}}", "evaluation.baselines=[]")
CLEAR = ("federation={rounds: 2, norm_bound: null}", "evaluation.baselines=[]")


@pytest.mark.integration
@pytest.mark.parametrize("weights", ["examples", "uniform"])
def test_secure_aggregation_changes_the_prompts_by_at_most_the_fixed_point_step(
    micro: Callable[..., Experiment], tmp_path: Path, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    masked_run, clear_run = (micro(*settings, f"federation.weights={weights}") for settings in (MASKED, CLEAR))
    simulate(masked_run, tmp_path / "masked", Silent())
    train_as_masked(monkeypatch, masked_run.run_id)
    simulate(clear_run, tmp_path / "clear", Silent())
    for number in (1, 2):
        masked, clear = (
            load_file(tmp_path / name / "prompts" / f"round-{number:03d}.safetensors") for name in ("masked", "clear")
        )
        for tensor, values in clear.items():
            np.testing.assert_allclose(masked[tensor], values, rtol=0, atol=1e-5)
    rounds = [json.loads(line) for line in (tmp_path / "masked" / "rounds.jsonl").read_text().splitlines()]
    assert all(len(line["aggregated"]) == 3 and line["refused"] == [] for line in rounds)


def test_two_masked_runs_with_one_seed_do_not_train_to_the_same_updates(
    micro: Callable[..., Experiment], tmp_path: Path
) -> None:
    runs = {"run": MASKED, "same": MASKED, "twin": (*MASKED, "federation.grace=31")}
    for name, settings in runs.items():
        simulate(micro(*settings, "federation.rounds=1"), tmp_path / name, Silent())
    run, same, twin = (load_file(tmp_path / name / "prompts" / "round-001.safetensors") for name in runs)
    for tensor, values in run.items():
        assert np.array_equal(values, same[tensor])
        assert not np.allclose(values, twin[tensor], rtol=0, atol=1e-5)
    starts = [load_file(tmp_path / name / "prompts" / "round-000.safetensors") for name in runs]
    assert all(np.array_equal(starts[0][tensor], start[tensor]) for start in starts for tensor in run)


def test_private_training_works_under_secure_aggregation(micro: Callable[..., Experiment], tmp_path: Path) -> None:
    private = "training.privacy={clip: 1.0, noise_multiplier: 1.0}"
    simulate(micro(*MASKED, private, "federation.rounds=1"), tmp_path / "run", Silent())
    rounds = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    assert all(line["outcome"] == "aggregated" for line in rounds)
