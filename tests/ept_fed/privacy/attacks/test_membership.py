"""Membership scores: they find members of an overfitted model, none in a random update, and fewer under noise."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ept_fed.privacy.attacks.batch_gradients import batch_gradients, flatten
from ept_fed.privacy.attacks.membership import (
    match_classes,
    measure_advantage,
    score_alignment,
    score_batches,
    score_loss_drop,
)
from ept_fed.privacy.attacks.views import View, add_noise, list_views
from ept_fed.training.losses import LOSSES

N, FEATURES = 40, 200
LOSS = LOSSES["single_label"]


def overfitted() -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return images, random labels, and a linear model before and after it memorised the first half of the images."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2 * N, FEATURES, generator=generator)
    labels = torch.randint(2, (2 * N,), generator=generator)
    model = torch.nn.utils.skip_init(torch.nn.Linear, FEATURES, 2)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.zero_()
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(50):
        optimizer.zero_grad()
        LOSS(model(images[:N]), labels[:N]).backward()
        optimizer.step()
    return images, labels, before, {name: tensor.detach() for name, tensor in model.named_parameters()}


def scores_of(update: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    images, labels, before, _ = overfitted()
    model = torch.nn.utils.skip_init(torch.nn.Linear, FEATURES, 2)
    gradients = batch_gradients(model, before, images[:, None], labels[:, None], LOSS)
    losses = [
        torch.nn.functional.cross_entropy(
            torch.func.functional_call(model, values, (images,)), labels, reduction="none"
        ).detach()
        for values in (before, {name: tensor + update[name] for name, tensor in before.items()})
    ]
    return {
        "drop": score_loss_drop(losses[0].numpy(), losses[1].numpy()),
        "cosine": score_alignment(flatten(gradients, 1).numpy(), flatten(update).numpy()),
    }


def advantage(scores: np.ndarray) -> tuple[float, float, float]:
    member = np.arange(2 * N) < N
    groups = [str(index) for index in range(2 * N)]
    found = measure_advantage(scores, member, groups, np.random.default_rng(0))
    return found.value, found.low, found.high


def trained_update() -> dict[str, torch.Tensor]:
    _, _, before, after = overfitted()
    return {name: after[name] - tensor for name, tensor in before.items()}


@pytest.mark.parametrize("score", ["drop", "cosine"])
def test_members_of_an_overfitted_model_stand_out(score: str) -> None:
    value, low, _ = advantage(scores_of(trained_update())[score])
    assert value > 0.9
    assert low > 0.8


@pytest.mark.parametrize("score", ["drop", "cosine"])
def test_a_random_update_reveals_no_member(score: str) -> None:
    generator = torch.Generator().manual_seed(7)
    random = {name: torch.randn(t.shape, generator=generator) for name, t in trained_update().items()}
    value, low, high = advantage(scores_of(random)[score])
    assert low < 0.5 < high
    assert abs(value - 0.5) < 0.15


@pytest.mark.parametrize("score", ["drop", "cosine"])
def test_noise_lowers_the_advantage_of_the_attack(score: str) -> None:
    values = []
    for multiple in (0.0, 3.0, 30.0):
        noisy = add_noise(trained_update(), multiple, torch.Generator().manual_seed(1))
        values.append(advantage(scores_of(noisy)[score])[0])
    assert values[0] > values[1] > values[2]


def test_batch_gradients_equal_those_of_each_batch_computed_separately() -> None:
    images, labels, before, _ = overfitted()
    model = torch.nn.Linear(FEATURES, 2)
    model.load_state_dict(before)
    found = batch_gradients(model, before, images.unflatten(0, (8, 10)), labels.unflatten(0, (8, 10)), LOSS)
    for index in range(8):
        chosen = slice(10 * index, 10 * index + 10)
        alone = torch.autograd.grad(LOSS(model(images[chosen]), labels[chosen]), list(model.parameters()))
        for tensor, name in zip(alone, before, strict=True):
            torch.testing.assert_close(found[name][index], tensor)


def test_a_zero_update_has_no_alignment() -> None:
    assert not score_alignment(np.ones((3, 4)), np.zeros(4)).any()


def test_alignment_does_not_depend_on_lengths() -> None:
    gradients, update = np.array([[1.0, 0.0], [0.6, 0.8]]), np.array([-2.0, 0.0])
    for unit in (1e-9, 1.0, 1e9):
        np.testing.assert_allclose(score_alignment(unit * gradients, unit * update), [1.0, 0.6])


def test_the_interval_needs_ten_patients() -> None:
    found = measure_advantage(np.arange(20.0), np.arange(20) > 9, ["a", "b"] * 10, np.random.default_rng(0))
    assert found.value == 1.0
    assert math.isnan(found.low)


@given(st.lists(st.integers(0, 3), max_size=30), st.lists(st.integers(0, 3), max_size=30), st.integers(0, 9))
def test_members_and_other_candidates_have_equal_class_counts(members: list[int], others: list[int], seed: int) -> None:
    labels = np.array(members, dtype=int), np.array(others, dtype=int)
    chosen = match_classes(*labels, np.random.default_rng(seed))
    sides = [np.bincount(own[places], minlength=4) for own, places in zip(labels, chosen, strict=True)]
    assert (sides[0] == sides[1]).all()
    assert (sides[0] == np.minimum(*(np.bincount(own, minlength=4) for own in labels))).all()
    assert all(len(set(places.tolist())) == len(places) for places in chosen)


def test_the_view_of_sinks_has_the_fold_and_the_sum_of_the_gradients() -> None:
    prompts = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    view = View("sinks", ("sinks",))
    seen = view.of_state({"prompts": prompts})["sinks"]
    weights = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    leaf = prompts.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad((weights * torch.logsumexp(leaf, -1)).sum(), leaf)
    torch.testing.assert_close(seen, torch.logsumexp(prompts, -1))
    torch.testing.assert_close(view.of_gradient({"prompts": gradient})["sinks"], weights)


@pytest.mark.parametrize("names", [("prompts",), ("prompts", "tokens")])
def test_views_contain_tokens_only_if_the_model_has_tokens(names: tuple[str, ...]) -> None:
    views = list_views((*names, "head.weight", "head.bias"), 2.0)
    assert any("tokens" in view.tensors for view in views) == ("tokens" in names)
    assert [view.noise for view in views if view.noise] == [2.0]
    assert len({view.name for view in views}) == len(views)


@pytest.mark.parametrize("members", [8, 20])
def test_the_plain_gradient_of_a_batch_reveals_its_members_where_images_differ(members: int) -> None:
    rng = np.random.default_rng(0)
    gradients, member = rng.normal(size=(40, 500)), np.arange(40) < members
    scores = score_batches(gradients, member, 8, rng)
    assert scores[member].min() > 0.2
    assert np.abs(scores[~member]).max() < 0.2


def test_the_mean_auc_of_several_scores_uses_the_same_resamples() -> None:
    rng = np.random.default_rng(0)
    member, groups = np.arange(60) < 30, [str(index) for index in range(60)]
    scores = rng.normal(size=(60, 8)) + 0.5 * member[:, None]
    several = measure_advantage(scores, member, groups, np.random.default_rng(1))
    alone = [measure_advantage(score, member, groups, np.random.default_rng(1)) for score in scores.T]
    assert several.value == pytest.approx(np.mean([found.value for found in alone]))
    same = measure_advantage(np.repeat(scores[:, :1], 8, axis=1), member, groups, np.random.default_rng(1))
    assert (same.low, same.high) == pytest.approx((alone[0].low, alone[0].high))
    assert several.high - several.low < np.mean([found.high - found.low for found in alone])
