"""What a run leaves when its sites choose: a harmful federation is not used, and the best round is kept."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ept_fed.config.experiment import Experiment
from ept_fed.data.datasets.prepare import PreparedData
from ept_fed.progress import Silent
from ept_fed.reports.run.read_run import read_run
from ept_fed.reports.run.round_record import RoundRecord
from simulations.engine import simulate as simulate_module
from simulations.engine.simulate import simulate
from simulations.engine.virtual_sites import VirtualFederation, prepare_federation

Micro = Callable[..., Experiment]

# A backbone that sees the phantoms, and frozen layers that run once, so that training to the end takes seconds.
LEARNING = (
    "model={backbone: vit_demo_patch8_64, weights: pretrained, prompt_layers: [5], prompt_length: 10, tokens: 8}",
    "model.initial_sink=2.0",
    "data.shots=8",
    "data.validation_shots=10",
    "data.patients_per_class=40",
    "data.test_shots=20",
    "data.augmentation={views: 2, crop_scale: [0.08, 1.0]}",
    "training={head: trained, batch_size: 8, epochs: 3, head_lr: 0.01, prompt_lr: 0.1, token_lr: 0.03}",
    "training.precision=fast",
    "federation={rounds: 6, share: prompts+head, select: best}",
    "personalisation.choose=true",
    "model.device=cpu",
)


def permute_labels(federation: VirtualFederation, sites: tuple[str, ...]) -> VirtualFederation:
    """Return the federation with the labels of some sites dealt out anew among their images."""
    changed = dict(federation.data.sites)
    for name in sites:
        site, parts = changed[name], {}
        for part in ("train", "validation"):
            images = getattr(site, part)
            order = np.random.default_rng(0).permutation(len(images.records))
            records = [replace(r, labels=images.records[k].labels) for r, k in zip(images.records, order, strict=True)]
            parts[part] = type(images)(
                records, images._images, classes=images.classes, task=images.task, pipelines=images._pipelines
            )
        changed[name] = replace(site, **parts)
    data: PreparedData = replace(federation.data, sites=changed)
    return replace(federation, data=data)


@pytest.fixture
def harmful(monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(experiment: Experiment, **options: Any) -> VirtualFederation:
        return permute_labels(prepare_federation(experiment, **options), ("site-2", "site-3"))

    monkeypatch.setattr(simulate_module, "prepare_federation", prepare)


@pytest.mark.integration
@pytest.mark.usefixtures("harmful", "undrawn")
def test_a_site_keeps_its_local_model_if_the_others_have_wrong_labels(micro: Micro, tmp_path: Path) -> None:
    report = simulate(micro(*LEARNING), tmp_path / "run", Silent())
    choice = report["choices"]["site-1"]
    test = {setting: report["test"][setting]["site-1"]["auc"] for setting in report["settings"]}
    # The plant works: the federation is worse here than the local model.
    assert test["federated"] < test["local"] - 0.1
    assert choice["name"] == "local"
    assert test["chosen"] == test["local"]
    page = json.loads((tmp_path / "run" / "sites" / "site-1" / "report.json").read_text())
    assert page["headline"]["verdict"] == "local model kept"
    assert page["headline"]["sentence"].startswith("This site keeps its local model")
    text = (tmp_path / "run" / "report.html").read_text()
    assert "1 keeping the local model" in text


@pytest.mark.integration
@pytest.mark.usefixtures("undrawn")
def test_a_run_keeps_its_best_round_and_says_so(micro: Micro, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The validation results of rounds 3 and later are made worse, as they would be by overfitting."""

    def worsen(record: RoundRecord) -> float:
        return float(np.median([entry.evaluation["auc"] for entry in record.sites.values()])) - 0.5 * (record.round > 2)

    monkeypatch.setattr("server.rounds.selection.median_auc", worsen)
    best = ("federation.rounds=6", "federation.select=best", "federation.patience=3", "personalisation.choose=true")
    experiment = micro(*best)
    report = simulate(experiment, tmp_path / "run", Silent())
    assert report["chosen_round"] <= 2
    assert report["ended"] == f"no better validation AUC for 3 rounds, at round {report['chosen_round'] + 3}"
    run = read_run(tmp_path / "run")
    assert len(run.rounds) == report["chosen_round"] + 3
    federated = report["training"]["federated"]["site-1"]
    assert (federated["rounds"], federated["chosen"]) == (len(run.rounds), report["chosen_round"])
    assert f"The prompts of round {report['chosen_round']} are used" in (tmp_path / "run" / "report.html").read_text()
