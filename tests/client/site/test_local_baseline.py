"""A local model stops and is chosen by the site's own validation images, and resumes with the same result."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from client.site.held_model import HeldModel
from client.site.local_baseline import describe_local_training, train_locally
from client.site.site import Site
from client.site.state_store import StateFolder
from client.site.validation_curve import ValidationCurve
from ept_fed.config.experiment import Experiment
from ept_fed.data.datasets.prepare import CachedDataset
from ept_fed.evaluation.metrics import Array
from ept_fed.progress import Silent
from simulations.engine.virtual_sites import VirtualFederation, prepare_federation

Micro = Callable[..., Experiment]


@pytest.fixture(scope="module")
def federation(shared_micro: Micro) -> VirtualFederation:
    return prepare_federation(shared_micro("federation.rounds=6", "model.device=cpu", "training.prompt_lr=1"))


def open_site(federation: VirtualFederation, folder: Path | None = None) -> Site:
    states = None if folder is None else StateFolder(folder, run="r", site="site-1")
    return federation.create_site(federation.data.sites["site-1"], states)


def train(site: Site, federation: VirtualFederation, aucs: list[float], **settings: object) -> None:
    """Train locally; the validation AUC after round r is aucs[r - 1]."""
    measure = HeldModel.assess

    def assess(held: HeldModel, images: CachedDataset) -> tuple[Array, dict[str, float]]:
        scores, metrics = measure(held, images)
        return scores, {**metrics, "auc": aucs[site.trained_rounds]}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HeldModel, "assess", assess)
        train_locally({"site-1": site}, federation.experiment.training, 6, Silent(), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("aucs", "tolerance", "patience", "rounds", "chosen"),
    [
        ([0.5, 0.75, 0.6, 0.6, 0.6, 0.6], 0.0, None, 6, 2),
        ([0.5, 0.75, 0.6, 0.625, 0.5, 0.5], 0.125, None, 6, 4),
        ([0.5, 0.75, 0.6, 0.6, 0.6, 0.9], 0.0, 2, 4, 2),
        ([0.5, 0.75, 0.625, 0.625, 0.6, 0.9], 0.125, 2, 4, 4),
        ([0.5, 0.6, 0.7, 0.7, 0.8, 0.8], 0.0, 2, 6, 6),
        ([math.nan] * 6, 0.0, 2, 6, 6),
    ],
)
def test_the_latest_good_round_is_used_and_training_stops_without_improvement(
    federation: VirtualFederation,
    aucs: list[float],
    tolerance: float,
    patience: int | None,
    rounds: int,
    chosen: int,
) -> None:
    site = open_site(federation)
    train(site, federation, aucs, patience=patience, tolerance=tolerance)
    state = site.state
    assert state is not None
    assert (site.trained_rounds, state.round) == (rounds, chosen)
    assert len(site.curve.auc) == rounds
    whole = open_site(federation)
    for number in range(1, chosen + 1):
        whole.fit(federation.experiment.training, number, 6)
    assert np.array_equal(site.own_payload(), whole.own_payload())
    record = describe_local_training(site)
    assert (record.rounds, record.chosen) == (rounds, chosen)


def test_the_last_round_is_used_if_the_run_says_so(federation: VirtualFederation) -> None:
    site = open_site(federation)
    train(site, federation, [0.9, 0.5, 0.5, 0.5, 0.5, 0.5], tolerance=None)
    assert site.state is not None
    assert site.state.round == 6


def test_a_resumed_local_model_stops_and_is_chosen_as_if_it_had_never_stopped(
    federation: VirtualFederation, tmp_path: Path
) -> None:
    aucs = [0.5, 0.7, 0.6, 0.6, 0.6, 0.6]
    first = open_site(federation, tmp_path)
    for number in (1, 2, 3, 4):
        first.fit(federation.experiment.training, number, 6)
    curve = first.curve
    assert len(curve.auc) == 4
    again = open_site(federation, tmp_path)
    assert again.curve == curve
    train(again, federation, aucs, tolerance=0.0)
    assert again.trained_rounds == 6
    assert again.curve.auc[:4] == curve.auc


def test_the_latest_of_equally_good_rounds_is_chosen_and_patience_counts_from_the_first() -> None:
    curve = ValidationCurve((0.5, math.nan, 0.8, 0.8), (1.0, 1.0, 1.0, 1.0))
    assert curve.choose_round(0.0) == 4
    assert [curve.is_over(patience) for patience in (None, 1, 2)] == [False, True, False]
    assert ValidationCurve().choose_round(0.1) == ValidationCurve((math.nan,), (1.0,)).choose_round(0.1) == 0
    assert not ValidationCurve((math.nan,) * 9, (1.0,) * 9).is_over(1)
