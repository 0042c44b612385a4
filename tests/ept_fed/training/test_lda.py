"""The LDA head: it follows the closed form of the textbook, and is always computed for the current prompts."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from client.site.held_model import HeldModel
from client.site.personalise import fine_tune
from client.site.site import Site
from ept_fed.config.experiment import Experiment
from ept_fed.data.datasets.cache import CachedDataset
from ept_fed.errors import InputRefusedError
from ept_fed.progress import Silent
from ept_fed.protocol.messages import Header, MessageRefusedError, RoundRequest
from ept_fed.reports.run.run_folder import RunFolder
from ept_fed.training.lda import measure_statistics, solve_lda
from ept_fed.training.lda_head import HeadFit
from ept_fed.training.loop import RoundScope, TrainingDivergedError, train_round
from ept_fed.training.optimizer import build_optimizer
from ept_fed.training.sampling import halve
from simulations.engine.baselines import train_local
from simulations.engine.virtual_sites import VirtualFederation, prepare_federation

Micro = Callable[..., Experiment]
LDA = "training.head=lda"


def fit_lda(x: Any, y: Any, *, classes: int, shrinkage: float) -> tuple[np.ndarray, np.ndarray]:
    own = measure_statistics(x, y, classes=classes)
    return solve_lda(own, own, multi_label=np.ndim(y) == 2, shrinkage=shrinkage)


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
def test_the_lda_head_equals_that_of_scikit_learn(
    seed: int, classes: int, each: int, width: int, shrinkage: float
) -> None:
    x, y = draw(seed, classes, each, width)
    weight, bias = fit_lda(x, y, classes=classes, shrinkage=shrinkage)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage, priors=np.full(classes, 1 / classes))
    means = theirs.fit(x, y).means_
    coefficients = np.linalg.solve(theirs.covariance_, means.T).T
    logits = x @ coefficients.T - 0.5 * (means * coefficients).sum(1)
    logits -= logits.mean(1, keepdims=True)
    np.testing.assert_allclose(x @ weight.T + bias, 2 * logits / logits.std(), rtol=1e-6, atol=1e-7)


@given(seed=st.integers(0, 999), scale=st.floats(1e-3, 1e3))
def test_scaling_and_shifting_the_features_does_not_change_the_logits(seed: int, scale: float) -> None:
    x, y = draw(seed, 3, 5, 4)
    moved = scale * (x + 7)
    logits = [a @ w.T + b for a in (x, moved) for w, b in [fit_lda(a, y, classes=3, shrinkage=0.3)]]
    np.testing.assert_allclose(*logits, rtol=1e-5, atol=1e-6)


def test_an_absent_class_has_a_low_logit_and_does_not_change_the_present_ones() -> None:
    x, y = draw(0, 3, 6, 5)
    weight, bias = fit_lda(x, y, classes=3, shrinkage=0.3)
    wider, offsets = fit_lda(x, np.where(y == 2, 3, y), classes=4, shrinkage=0.3)
    np.testing.assert_allclose(wider[[0, 1, 3]], weight)
    assert not wider[2].any()
    assert offsets[2] < np.median(x @ weight.T + bias)


def test_labels_that_occur_together_are_separated_one_by_one() -> None:
    rng = np.random.default_rng(0)
    y = (rng.random((60, 3)) < 0.4).astype(float)
    y[:, 2] = 0
    x = rng.normal(size=(60, 8)) * 0.1
    x[:, :2] += y[:, :2]
    weight, bias = fit_lda(x, y, classes=3, shrinkage=0.3)
    logits = x @ weight.T + bias
    assert ((logits[:, :2] > 0) == (y[:, :2] > 0)).mean() > 0.95
    assert (logits[:, 2] < 0).all()


def test_a_label_of_every_image_is_predicted_for_the_next_image_too() -> None:
    weight, bias = fit_lda(np.eye(4), np.ones((4, 1)), classes=1, shrinkage=0.3)
    assert not weight.any()
    assert bias[0] > 0


def test_one_image_per_class_without_any_spread_gives_finite_numbers() -> None:
    weight, bias = fit_lda(np.eye(3), np.arange(3), classes=3, shrinkage=0.3)
    assert np.isfinite(weight).all()
    assert (np.eye(3) @ weight.T + bias).argmax(1).tolist() == [0, 1, 2]
    same, offset = fit_lda(np.ones((4, 2)), np.array([0, 0, 1, 1]), classes=2, shrinkage=0.3)
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
def test_inputs_that_cannot_be_analysed_are_refused(x: np.ndarray, y: np.ndarray, shrinkage: float) -> None:
    with pytest.raises(ValueError, match=r"fit together|shrinkage|finite"):
        fit_lda(x, y, classes=2, shrinkage=shrinkage)


@pytest.fixture
def federation(micro: Micro) -> VirtualFederation:
    return prepare_federation(micro(LDA, "model.tokens=1", "data.phantom_sites=2"))


def make_site(federation: VirtualFederation) -> Site:
    return federation.create_site(next(iter(federation.data.sites.values())))


def head_of(held: HeldModel) -> torch.Tensor:
    return held.model.head.weight.detach().clone()


def refitted(held: HeldModel) -> torch.Tensor:
    held.refit_head()
    return head_of(held)


def test_the_head_is_computed_for_the_current_prompts_of_the_site(federation: VirtualFederation) -> None:
    site, plan = make_site(federation), federation.plan()
    heads = []
    for payload in (plan.initial, plan.initial + 1):
        with site.hold(payload) as held:
            heads.append(head_of(held))
            assert torch.equal(heads[-1], refitted(held))
    assert not torch.equal(*heads)


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=30).map(np.array),
    seed=st.integers(0, 99),
)
def test_halves_have_half_of_every_class_and_share_only_classes_of_one_image(labels: np.ndarray, seed: int) -> None:
    first, second = halve(labels, np.random.default_rng(seed))
    assert sorted({*first, *second}) == list(range(len(labels)))
    for label in np.unique(labels):
        counts = [int((labels[half] == label).sum()) for half in (first, second)]
        whole = int((labels == label).sum())
        assert counts == [1, 1] if whole == 1 else sum(counts) == whole
        assert abs(counts[0] - counts[1]) <= 1


def test_prompts_train_on_images_that_their_head_was_not_computed_from(
    federation: VirtualFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, training = make_site(federation), federation.experiment.training
    events: list[tuple[str, list[int]]] = []
    apply, batches = HeadFit.apply, CachedDataset.batches

    def fit(self: HeadFit, model: Any, images: Any, known: Any = None) -> None:
        events.append(("fit", list(known)))
        with monkeypatch.context() as patch:
            patch.setattr(CachedDataset, "batches", batches)
            apply(self, model, images, known)

    def pass_on(self: CachedDataset, size: int, *, order: Any = None, augment_seed: Any = None) -> Any:
        events.append(("train", list(order)))
        return batches(self, size, order=order, augment_seed=augment_seed)

    monkeypatch.setattr(HeadFit, "apply", fit)
    monkeypatch.setattr(CachedDataset, "batches", pass_on)
    settings = training.model_copy(update={"epochs": 2})
    scope = RoundScope(0, "site", 1, 1)
    with site.hold() as held:
        optimizer = build_optimizer(held.model, settings)
        outcome = train_round(held.model, optimizer, site.data.train, settings, scope, head=held.head_fit)
    assert [kind for kind, _ in events] == ["fit", "train"] * 4
    for (_, known), (_, trained) in zip(events[::2], events[1::2], strict=True):
        assert not {*known} & {*trained}
    for epoch in (events[1:4:2], events[5:8:2]):
        assert sorted(index for _, trained in epoch for index in trained) == list(range(len(site.data.train)))
    assert outcome.steps <= federation.plan().max_steps(len(site.data.train)) * 2


def test_a_round_changes_the_prompts(federation: VirtualFederation) -> None:
    site, plan = make_site(federation), federation.plan()
    header = Header(plan.run, 1, plan.backbone_digest, plan.layout.hash)
    reply = site.train(RoundRequest(header, "train", plan.rounds, plan.initial, "train", plan.training))
    assert reply.payload is not None
    assert not np.array_equal(reply.payload, plan.initial)
    assert reply.metrics["steps"] <= plan.max_steps(reply.examples)


def test_prompts_with_features_that_are_not_finite_end_the_round_as_diverged(
    federation: VirtualFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, payload = make_site(federation), federation.plan().initial
    with site.hold() as held:
        width, kind = held.model.head.in_features, type(held.model)
    nothing = lambda _model, images: torch.full((len(images), width), torch.nan)  # noqa: E731
    monkeypatch.setattr(kind, "forward_features", nothing)
    with pytest.raises(TrainingDivergedError, match="not finite"), site.hold(payload):
        pass


def test_a_round_without_a_way_to_compute_the_head_is_refused(federation: VirtualFederation) -> None:
    site, training = make_site(federation), federation.experiment.training
    with site.hold() as held:
        optimizer = build_optimizer(held.model, training)
        with pytest.raises(ValueError, match="HeadFit"):
            train_round(held.model, optimizer, site.data.train, training, RoundScope(0, "s", 1, 1))


def test_a_local_model_ends_with_the_head_of_its_last_prompts(federation: VirtualFederation, tmp_path: object) -> None:
    for site in train_local(federation, RunFolder(tmp_path), Silent()).values():  # type: ignore[arg-type]
        with site.hold() as held:
            assert torch.equal(head_of(held), refitted(held))


def test_fine_tuned_prompts_get_their_own_head(federation: VirtualFederation) -> None:
    site, plan = make_site(federation), federation.plan()
    with site.hold(plan.initial) as held:
        fine_tune(held, federation.experiment.training, epochs=1, seed=0)
        assert torch.equal(head_of(held), refitted(held))


def test_a_request_for_another_kind_of_head_is_refused(federation: VirtualFederation, micro: Micro) -> None:
    site, plan = make_site(federation), federation.plan()
    header = Header(plan.run, 1, plan.backbone_digest, plan.layout.hash)
    trained = micro().training
    with pytest.raises(MessageRefusedError, match=r"training\.head = 'trained'"):
        site.train(RoundRequest(header, "train", plan.rounds, plan.initial, "train", trained))


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        (("training.head_first_epochs=1",), "training.head_first_epochs"),
        (("personalisation.ditto=0.1",), "personalisation.ditto"),
        (("model.method=linear", "federation.payload=raw"), "federation.share"),
        (("training.head_shrinkage=0",), "training.head_shrinkage"),
    ],
)
def test_settings_that_do_not_fit_an_lda_head_are_refused(overrides: tuple[str, ...], field: str, micro: Micro) -> None:
    with pytest.raises(InputRefusedError) as refusal:
        micro(LDA, *overrides)
    assert field in {problem.field for problem in refusal.value.problems}
