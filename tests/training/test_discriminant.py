"""The head in closed form: the textbook's analysis, and always that of the prompts at hand."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from client.personalise import fine_tune
from client.site import Site
from ept_fed.config import Experiment
from ept_fed.problems import InputRefusedError
from ept_fed.protocol.messages import Header, MessageRefusedError, RoundRequest
from ept_fed.reports.progress import Silent
from ept_fed.reports.run_folder import RunFolder
from ept_fed.training.discriminant import fit_discriminant
from simulations.baselines import train_local
from simulations.virtual_sites import VirtualFederation, prepare_federation

Micro = Callable[..., Experiment]
DISCRIMINANT = "training.head=discriminant"


def draw(seed: int, classes: int, each: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each)
    centres = rng.normal(size=(classes, width)) * 2
    return centres[labels] + rng.normal(size=(len(labels), width)) @ rng.normal(size=(width, width)), labels


@given(
    seed=st.integers(0, 999),
    classes=st.integers(2, 6),
    each=st.integers(2, 9),
    width=st.integers(1, 12),
    shrinkage=st.floats(0.05, 1.0),
)
def test_the_discriminant_is_that_of_scikit_learn(
    seed: int, classes: int, each: int, width: int, shrinkage: float
) -> None:
    x, y = draw(seed, classes, each, width)
    weight, bias = fit_discriminant(x, y, classes=classes, shrinkage=shrinkage)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage, priors=np.full(classes, 1 / classes))
    means = theirs.fit(x, y).means_
    coefficients = np.linalg.solve(theirs.covariance_, means.T).T
    logits = x @ coefficients.T - 0.5 * (means * coefficients).sum(1)
    logits -= logits.mean(1, keepdims=True)
    np.testing.assert_allclose(x @ weight.T + bias, 2 * logits / logits.std(), rtol=1e-6, atol=1e-7)


@given(seed=st.integers(0, 999), scale=st.floats(1e-3, 1e3))
def test_neither_the_scale_of_the_features_nor_their_place_matters(seed: int, scale: float) -> None:
    x, y = draw(seed, 3, 5, 4)
    moved = scale * (x + 7)
    logits = [a @ w.T + b for a in (x, moved) for w, b in [fit_discriminant(a, y, classes=3, shrinkage=0.3)]]
    np.testing.assert_allclose(*logits, rtol=1e-5, atol=1e-6)


def test_an_absent_class_lies_below_the_present_ones_and_changes_none_of_them() -> None:
    x, y = draw(0, 3, 6, 5)
    weight, bias = fit_discriminant(x, y, classes=3, shrinkage=0.3)
    wider, offsets = fit_discriminant(x, np.where(y == 2, 3, y), classes=4, shrinkage=0.3)
    np.testing.assert_allclose(wider[[0, 1, 3]], weight)
    assert not wider[2].any()
    assert offsets[2] < np.median(x @ weight.T + bias)


def test_labels_that_occur_together_are_told_apart_one_by_one() -> None:
    rng = np.random.default_rng(0)
    y = (rng.random((60, 3)) < 0.4).astype(float)
    y[:, 2] = 0
    x = rng.normal(size=(60, 8)) * 0.1
    x[:, :2] += y[:, :2]
    weight, bias = fit_discriminant(x, y, classes=3, shrinkage=0.3)
    logits = x @ weight.T + bias
    assert ((logits[:, :2] > 0) == (y[:, :2] > 0)).mean() > 0.95
    assert (logits[:, 2] < 0).all()


def test_one_image_per_class_without_any_spread_still_gives_numbers() -> None:
    weight, bias = fit_discriminant(np.eye(3), np.arange(3), classes=3, shrinkage=0.3)
    assert np.isfinite(weight).all()
    assert (np.eye(3) @ weight.T + bias).argmax(1).tolist() == [0, 1, 2]
    same, offset = fit_discriminant(np.ones((4, 2)), np.array([0, 0, 1, 1]), classes=2, shrinkage=0.3)
    assert not same.any()
    assert not offset.any()


@pytest.mark.parametrize(
    ("x", "y", "shrinkage"),
    [
        (np.ones((2, 3)), np.zeros(3), 0.3),
        (np.ones((0, 3)), np.zeros(0), 0.3),
        (np.ones((2, 3)), np.zeros((2, 5)), 0.3),
        (np.full((2, 3), np.nan), np.arange(2), 0.3),
        (np.ones((2, 3)), np.arange(2), 0.0),
    ],
)
def test_what_cannot_be_analysed_is_refused(x: np.ndarray, y: np.ndarray, shrinkage: float) -> None:
    with pytest.raises(ValueError, match=r"fit together|shrinkage|finite"):
        fit_discriminant(x, y, classes=2, shrinkage=shrinkage)


@pytest.fixture
def federation(micro: Micro) -> VirtualFederation:
    return prepare_federation(micro(DISCRIMINANT, "model.tokens=1"))


def make_site(federation: VirtualFederation) -> Site:
    return federation.create_site(next(iter(federation.data.sites.values())))


def head_of(site: Site) -> torch.Tensor:
    return site.model.head.weight.detach().clone()


def fitted_anew(site: Site) -> torch.Tensor:
    site.refit_head()
    return head_of(site)


def test_the_head_fits_whatever_prompts_the_site_has(federation: VirtualFederation) -> None:
    site, plan = make_site(federation), federation.plan()
    heads = []
    for payload in (plan.initial, plan.initial + 1):
        site.adopt(payload)
        heads.append(head_of(site))
        assert torch.equal(heads[-1], fitted_anew(site))
    assert not torch.equal(*heads)


def test_a_round_trains_prompts_beside_a_head_that_holds_still(federation: VirtualFederation) -> None:
    site, plan = make_site(federation), federation.plan()
    site.adopt(plan.initial)
    before = head_of(site)
    header = Header(plan.run, 1, plan.backbone_digest, plan.layout.hash)
    reply = site.train(RoundRequest(header, "train", plan.rounds, plan.initial, "train", plan.training))
    assert torch.equal(head_of(site), before)
    assert reply.payload is not None
    assert not np.array_equal(reply.payload, plan.initial)


def test_a_site_alone_ends_with_the_head_of_its_last_prompts(federation: VirtualFederation, tmp_path: object) -> None:
    for site in train_local(federation, RunFolder(tmp_path), Silent()).values():  # type: ignore[arg-type]
        held = head_of(site)
        assert torch.equal(held, fitted_anew(site))


def test_fine_tuned_prompts_get_a_head_of_their_own(federation: VirtualFederation) -> None:
    site, plan = make_site(federation), federation.plan()
    fine_tune(site, plan.initial, federation.experiment.training, epochs=1, seed=0)
    held = head_of(site)
    assert torch.equal(held, fitted_anew(site))


def test_a_request_that_changes_how_the_head_is_made_is_refused(federation: VirtualFederation, micro: Micro) -> None:
    site, plan = make_site(federation), federation.plan()
    header = Header(plan.run, 1, plan.backbone_digest, plan.layout.hash)
    trained = micro().training.model_dump_json()
    with pytest.raises(MessageRefusedError, match=r"training\.head = 'trained'"):
        site.train(RoundRequest(header, "train", plan.rounds, plan.initial, "train", trained))


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        (("federation.share=prompts+head",), "federation.share"),
        (("training.head_first_epochs=1",), "training.head_first_epochs"),
        (("personalisation.ditto=0.1",), "personalisation.ditto"),
        (("model.method=linear", "federation.payload=raw"), "training.head"),
        (("training.head_shrinkage=0",), "training.head_shrinkage"),
    ],
)
def test_what_does_not_go_with_a_computed_head_is_refused(overrides: tuple[str, ...], field: str, micro: Micro) -> None:
    with pytest.raises(InputRefusedError) as refusal:
        micro(DISCRIMINANT, *overrides)
    assert field in {problem.field for problem in refusal.value.problems}
