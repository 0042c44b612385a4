"""Simulations with site-level DP: every source of the noise, from the settings to the site's page."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from ept_fed.config.experiment import Experiment
from ept_fed.privacy.dp.accountant import GaussianSteps, spent_epsilon
from ept_fed.progress import Silent
from server.strategies.central_dp import NoisyMean
from simulations.engine.simulate import simulate
from tests.masked_runs import train_as_masked
from tests.simulations.engine.test_resume import StopHere

SETTINGS = {
    "local": "{rounds: 2, select: last, norm_bound: null, weights: uniform}",
    "distributed": "{rounds: 2, select: last, norm_bound: null, weights: uniform, secure_aggregation: {}}",
    "central": "{rounds: 2, select: last, norm_bound: null, weights: uniform}",
}
SENTENCES = {
    "local": "this site clipped its updates of 2 rounds and added noise",
    "distributed": "each site added its part of the noise",
    "central": "the server clipped the updates of 2 rounds and added noise to their mean",
}


def of(source: str, noise: float, clip: float = 20.0) -> tuple[str, ...]:
    private = f"{{noise: {source}, clip: {clip}, noise_multiplier: {noise}}}"
    return f"federation={SETTINGS[source]}", f"federation.site_privacy={private}", "evaluation.baselines=[]"


@pytest.mark.integration
def test_noise_that_is_next_to_none_changes_next_to_nothing(
    micro: Callable[..., Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(name: str, *settings: str) -> dict[str, np.ndarray]:
        simulate(micro(*settings), tmp_path / name, Silent())
        return load_file(tmp_path / name / "prompts" / "round-002.safetensors")

    masked = micro(*of("distributed", 6e-6)).run_id
    noised = {source: run(source, *of(source, 6e-6)) for source in SETTINGS}
    plain = run("plaintext", f"federation={SETTINGS['local']}", "evaluation.baselines=[]")
    train_as_masked(monkeypatch, masked)
    alike = run("as masked", f"federation={SETTINGS['local']}", "evaluation.baselines=[]")
    for source, noisy in noised.items():
        plaintext = alike if source == "distributed" else plain
        for name, values in plaintext.items():
            np.testing.assert_allclose(noisy[name], values, atol=2e-3, err_msg=source)


@pytest.mark.integration
@pytest.mark.parametrize("source", SETTINGS)
def test_the_page_says_who_added_the_noise_and_what_it_promises(
    micro: Callable[..., Experiment], tmp_path: Path, source: str
) -> None:
    simulate(micro(*of(source, 4.0, clip=0.01)), tmp_path / "run", Silent())
    rounds = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    assert all(line["outcome"] == "aggregated" for line in rounds)
    for exchange in rounds[0]["sites"].values():
        assert exchange["train"]["loss"] is None
        assert exchange["evaluation"]["auc"] is None
    page = (tmp_path / "run/sites/site-1/report.html").read_text()
    site = json.loads((tmp_path / "run/sites/site-1/report.json").read_text())
    assert site["privacy"] == {
        "covers": "site",
        "noise": source,
        "silent": True,
        "epsilon": pytest.approx(spent_epsilon([GaussianSteps(2.0, 1.0, 1)] * 2, 1e-5)),
        "delta": 1e-5,
        "rounds": 2,
        "epsilon_of_all_runs": None,
    }
    assert SENTENCES[source] in page
    assert "The site did not send loss and quality metrics" in page
    assert "The sites did not send loss and quality metrics" in (tmp_path / "run/report.html").read_text()
    assert f"ε = {site['privacy']['epsilon']:.3g}" in page
    assert site["statistics"], "what the site measures itself is not held back from its own page"


@pytest.mark.integration
def test_a_clip_that_follows_the_updates_goes_on_where_a_killed_run_left_it(
    micro: Callable[..., Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = "{noise: central, clip: 50, noise_multiplier: 1.0e-6, adaptive: {quantile: 0.5, rate: 1.0}}"
    given = (f"federation={SETTINGS['central']}", f"federation.site_privacy={private}", "evaluation.baselines=[]")
    with pytest.raises(KeyboardInterrupt):
        simulate(micro(*given), tmp_path / "run", StopHere("federated", 1))
    first = tmp_path / "run" / "prompts" / "round-001.safetensors"
    held = load_file(first)["sinks"]
    first.unlink()
    clips: list[float] = []
    aggregate = NoisyMean.aggregate

    def watch(mean: NoisyMean, *given: Any) -> Any:
        clips.append(mean.clip)
        return aggregate(mean, *given)

    monkeypatch.setattr(NoisyMean, "aggregate", watch)
    simulate(micro(*given), tmp_path / "run", Silent(), resume=True)
    assert clips == [pytest.approx(50 * np.exp(-0.5), rel=1e-3)], (
        "one round was left, with the clip that the first left"
    )
    np.testing.assert_array_equal(load_file(first)["sinks"], held)
