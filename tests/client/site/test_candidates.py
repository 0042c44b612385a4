"""The models among which a site chooses: each is what its name says, and the chosen one is what the site exports."""

import dataclasses
import math
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch

from client.site.assessment import assess_settings, load_federated, release
from client.site.candidates import Predicted, SiteChoice, SiteLoader, choose_model, release_choice
from ept_fed.config.experiment import Experiment
from ept_fed.data.datasets.prepare import SiteData
from ept_fed.evaluation.candidates import Choice, mix
from ept_fed.evaluation.metrics import Array
from ept_fed.protocol.layout import Vector
from ept_fed.reports.run.settings import BASELINE, CHOSEN, FEDERATED, MIXED, PERSONALISED
from simulations.engine.virtual_sites import VirtualFederation, prepare_federation

Micro = Callable[..., Experiment]
Opened = tuple[Experiment, VirtualFederation, SiteData, dict[str, SiteLoader]]

HEADS = [
    ("training.head=trained", "federation.share=prompts+head", {"with LDA", "own"}),
    ("training.head=trained", "federation.share=prompts", {"with LDA"}),
    ("training.head=fixed+lda", "federation.share=prompts", {"with LDA"}),
    ("training.head=lda", "federation.share=prompts", set()),
]


def open_loaders(experiment: Experiment) -> tuple[VirtualFederation, SiteData, dict[str, SiteLoader]]:
    """Return loaders of a federated and a local model of a site; the federated payload is another site's."""
    federation = prepare_federation(experiment)
    data = federation.data.sites["site-1"]
    site, local, other = (
        federation.create_site(federation.data.sites[name]) for name in ("site-1", "site-1", "site-2")
    )
    for own in (site, local, other):
        for number in (1, 2):
            own.fit(experiment.training, number, 2)
    payload = other.own_payload()
    return federation, data, {BASELINE: local.hold, **load_federated(site, payload, experiment, print)}


@pytest.fixture(scope="module")
def opened(shared_micro: Micro) -> Opened:
    """Return the loaders of one trained federation; each call of a loader restores its model."""
    experiment = shared_micro("federation.share=prompts+head", "training.head_lr=0.1", "model.device=cpu")
    return experiment, *open_loaders(experiment)


def predict_with(federation: VirtualFederation, tensors: Mapping[str, Vector], data: SiteData) -> Array:
    """Return the test probabilities of a released model, loaded into a slot that knows nothing of the site."""
    with federation.create_site(data).hold() as held:
        held.model.load_payload({name: torch.from_numpy(tensor) for name, tensor in tensors.items()})
        return held.predict(data.test)


@pytest.mark.parametrize(("head", "share", "personal"), HEADS)
def test_the_candidates_are_ordered_from_the_federation_to_the_local_model(
    micro: Micro, head: str, share: str, personal: set[str]
) -> None:
    experiment = micro(head, share, "personalisation.choose=true", "model.device=cpu")
    _, data, loaders = open_loaders(experiment)
    assessed = assess_settings(data, loaders, experiment)
    candidates = [FEDERATED, *([PERSONALISED] if personal else []), MIXED, BASELINE]
    assert list(assessed.metrics) == [BASELINE, *candidates[:-1], CHOSEN]
    choice = assessed.choice
    assert choice is not None
    assert [row.name for row in choice.choice.rows] == candidates
    assert assessed.metrics[CHOSEN] == assessed.metrics[choice.choice.name]
    assert choice.personal_head in (personal or {None})
    assert choice.local_head in ("trained", "with LDA")
    assert {row["setting"] for row in assessed.rows} == set(assessed.metrics)


@pytest.mark.parametrize(
    ("name", "local_head", "personal_head"),
    [
        (FEDERATED, "trained", "with LDA"),
        (PERSONALISED, "trained", "with LDA"),
        (PERSONALISED, "with LDA", "own"),
        (MIXED, "trained", "own"),
        (MIXED, "with LDA", "with LDA"),
        (BASELINE, "trained", "with LDA"),
        (BASELINE, "with LDA", "own"),
    ],
)
def test_the_released_model_is_the_chosen_one(opened: Opened, name: str, local_head: str, personal_head: str) -> None:
    experiment, federation, data, loaders = opened
    choice = SiteChoice(Choice(name, "", ()), local_head, personal_head, 0.3)
    tensors, about = release_choice(choice, loaders, experiment)
    plain = {setting: Predicted.of(load, data).test for setting, load in loaders.items()}
    if name == MIXED:
        assert about["members"] == {BASELINE: 0.3, FEDERATED: pytest.approx(0.7)}
        members = {
            member: predict_with(
                federation,
                {key.removeprefix(f"{member}/"): t for key, t in tensors.items() if key.startswith(f"{member}/")},
                data,
            )
            for member in (BASELINE, FEDERATED)
        }
        np.testing.assert_allclose(members[FEDERATED], plain[FEDERATED], atol=1e-5)
        assert np.allclose(members[BASELINE], plain[BASELINE], atol=1e-5) == (local_head == "trained")
        return
    assert "members" not in about
    released = predict_with(federation, tensors, data)
    if name == FEDERATED or (name == BASELINE and local_head == "trained"):
        np.testing.assert_allclose(released, plain[name], atol=1e-5)
    else:
        # The same prompts with another head.
        assert not np.allclose(released, plain[BASELINE if name == BASELINE else FEDERATED], atol=1e-3)


def test_a_sites_own_head_is_the_one_it_trained_last(opened: Opened) -> None:
    experiment, _, _, loaders = opened
    tensors, _ = release_choice(SiteChoice(Choice(PERSONALISED, "", ()), None, "own", math.nan), loaders, experiment)
    with loaders[FEDERATED]() as held:
        assert held.round == 2
        assert np.array_equal(tensors["head.weight"], held.own["model/head.weight"])
    theirs, _ = release_choice(SiteChoice(Choice(FEDERATED, "", ()), None, None, math.nan), loaders, experiment)
    assert np.array_equal(tensors["sinks"], theirs["sinks"])


def test_the_local_model_competes_with_its_better_head_and_the_sum_is_of_that_model(opened: Opened) -> None:
    experiment, _, data, loaders = opened
    predicted = {setting: Predicted.of(load, data) for setting, load in loaders.items()}
    # A local model that is always wrong: the LDA head must replace it.
    classes = len(data.classes)
    guessing = dataclasses.replace(
        predicted[BASELINE],
        validation=(1 - np.eye(classes)[data.validation.labels.numpy()]) / (classes - 1),
    )
    found, choice = choose_model(data, loaders, {**predicted, BASELINE: guessing}, experiment)
    assert choice.local_head == "with LDA"
    expected = mix(found[BASELINE].test, found[FEDERATED].test, choice.share, data.task)
    np.testing.assert_allclose(found[MIXED].test, expected)


def test_a_site_without_validation_images_uses_the_federated_model_and_says_why(micro: Micro) -> None:
    experiment = micro("data.validation_fraction=0", "personalisation.choose=true", "model.device=cpu")
    federation, data, loaders = open_loaders(experiment)
    assert not len(data.validation)
    assessed = assess_settings(data, loaders, experiment)
    assert assessed.choice is not None
    assert (assessed.choice.choice.name, assessed.choice.choice.rows) == (FEDERATED, ())
    assert "no validation images" in assessed.choice.choice.reason
    tensors, about = release(assessed, loaders, experiment)
    assert "members" not in about
    expected = Predicted.of(loaders[FEDERATED], data).test
    np.testing.assert_allclose(predict_with(federation, tensors, data), expected, atol=1e-5)


def test_a_run_without_choice_compares_and_exports_the_federated_model(micro: Micro) -> None:
    experiment = micro("model.device=cpu")
    _, data, loaders = open_loaders(experiment)
    assessed = assess_settings(data, loaders, experiment)
    assert assessed.choice is None
    assert list(assessed.metrics) == [BASELINE, FEDERATED]
    tensors, _ = release(assessed, loaders, experiment)
    with loaders[FEDERATED]() as held:
        expected = held.model.payload_tensors(share="prompts", payload="folded")["sinks"]
    assert np.array_equal(tensors["sinks"], expected)
