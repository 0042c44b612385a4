"""Tests of ε in reports: the accountant's value for the trained rounds, on the site's own page."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from client.gate.privacy_budget import BudgetLedger
from client.report.privacy_spent import describe_charges, describe_private_rounds
from client.site.privacy_plan import RoundCost
from ept_fed.config.experiment import Experiment
from ept_fed.privacy.dp.accountant import GaussianSteps, spent_epsilon
from ept_fed.progress import Silent
from simulations.engine.simulate import simulate

Micro = Callable[..., Experiment]
STEPS = GaussianSteps(1.5, 0.2, 4)
COST = RoundCost("poisson-subsampled gaussian", STEPS, clip=1.0, delta=1e-5)


def test_epsilon_is_reported_for_one_run_and_for_all_runs_of_the_site(tmp_path: Path) -> None:
    ledger = BudgetLedger(tmp_path / "budget.jsonl")
    for run, number in (("a", 1), ("b", 1), ("b", 2)):
        ledger.charge(run, number, COST, delta=1e-5, epsilon=None)
    told = describe_charges(ledger.charged, "b", silent=False)
    assert told is not None
    assert told["epsilon"] == pytest.approx(spent_epsilon([STEPS] * 2, 1e-5))
    assert told["epsilon_of_all_runs"] == pytest.approx(spent_epsilon([STEPS] * 3, 1e-5))
    assert (told["rounds"], told["delta"]) == (2, 1e-5)
    assert describe_charges(ledger.charged, "c", silent=False) is None


@pytest.mark.integration
@pytest.mark.usefixtures("undrawn")
def test_a_simulations_page_states_its_privacy_guarantee(micro: Micro, tmp_path: Path) -> None:
    experiment = micro("training.privacy={clip: 1.0, noise_multiplier: 1.0}", "evaluation.baselines=[]")
    simulate(experiment, tmp_path / "private", Silent())
    simulate(micro("evaluation.baselines=[]", "federation.rounds=1"), tmp_path / "plain", Silent())
    site = json.loads((tmp_path / "private/sites/site-1/report.json").read_text())
    images = sum(row["images"] for row in site["data"] if row["split"] == "train")
    assert site["privacy"] == describe_private_rounds(experiment, images, 2)
    page = (tmp_path / "private/sites/site-1/report.html").read_text()
    assert f"ε = {site['privacy']['epsilon']:.3g}" in page
    assert "without noise" not in page
    assert json.loads((tmp_path / "plain/sites/site-1/report.json").read_text())["privacy"] is None
    assert "without noise" in (tmp_path / "plain/sites/site-1/report.html").read_text()
