from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ept_fed.config.experiment import Experiment, TrainingSettings
from ept_fed.models import PromptedViT
from ept_fed.training.loop import RoundScope, train_round
from ept_fed.training.losses import LOSSES
from ept_fed.training.optimizer import build_optimizer, set_learning_rates
from ept_fed.training.sampling import draw_order
from ept_fed.training.schedule import schedule_factor
from simulations.engine.virtual_sites import prepare_federation


@pytest.fixture(scope="module")
def model() -> PromptedViT:
    return PromptedViT.create("test_vit", num_classes=3, prompt_length=2, tokens=1, image_size=64)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_prompts_tokens_and_head_have_their_own_learning_rates(model: PromptedViT, optimizer: str) -> None:
    settings = TrainingSettings(optimizer=optimizer, prompt_lr=0.3, token_lr=0.02, head_lr=0.001)
    built = build_optimizer(model, settings)
    rates = {group["name"]: group["lr"] for group in built.param_groups}
    assert rates == {"prompts": 0.3, "tokens": 0.02, "head": 0.001}
    trained = {id(parameter) for group in built.param_groups for parameter in group["params"]}
    assert trained == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    set_learning_rates(built, 0.5)
    set_learning_rates(built, 0.5)
    assert {group["name"]: group["lr"] for group in built.param_groups}["prompts"] == pytest.approx(0.15)


@given(progress=st.floats(0, 1, exclude_max=True))
def test_the_cosine_falls_from_one_to_zero_and_the_constant_does_not(progress: float) -> None:
    assert 0 <= schedule_factor("cosine", progress) <= 1
    assert schedule_factor("cosine", progress) <= schedule_factor("cosine", progress / 2)
    assert schedule_factor("constant", progress) == 1


def test_the_ends_of_the_cosine() -> None:
    assert schedule_factor("cosine", 0.0) == 1
    assert schedule_factor("cosine", 0.5) == pytest.approx(0.5)
    assert schedule_factor("cosine", 1 - 1e-9) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="not in"):
        schedule_factor("cosine", 1.0)


def test_an_epoch_visits_every_image_once() -> None:
    order = draw_order(None, 20, np.random.default_rng(0))
    assert sorted(order) == list(range(20))


def test_a_balanced_epoch_draws_every_present_class_equally_often() -> None:
    labels = np.array([0] * 90 + [2] * 6 + [5] * 3)
    drawn = labels[draw_order(labels, 99, np.random.default_rng(0))]
    assert np.bincount(drawn, minlength=6).tolist() == [33, 0, 33, 0, 0, 33]


def test_losses_against_their_definition() -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 1])
    want = -logits.log_softmax(-1)[torch.arange(4), labels].mean()
    torch.testing.assert_close(LOSSES["single_label"](logits, labels), want)
    hot = torch.eye(3)[labels]
    p = logits.sigmoid()
    want = -(hot * p.log() + (1 - hot) * (1 - p).log()).mean()
    torch.testing.assert_close(LOSSES["multi_label"](logits, hot), want)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_momentum_is_kept_across_rounds_only_if_configured(micro: Callable[..., Experiment], optimizer: str) -> None:
    payloads = []
    for state in ("keep", "reset"):
        experiment = micro(
            "data.phantom_sites=2", f"training.optimizer_state={state}", f"training.optimizer={optimizer}"
        )
        federation = prepare_federation(experiment)
        site = federation.create_site(federation.data.sites["site-1"])
        for number in (1, 2):
            site.fit(experiment.training, number, 2)
        with site.hold() as held:
            payloads.append(held.model.fold().detach())
        # By hand: one optimiser for both rounds, or a new one for each.
        with federation.slot.hold("the test", None) as model:
            built = build_optimizer(model, experiment.training)
            for number in (1, 2):
                scope = RoundScope(experiment.seed, site.name, number, 2)
                train_round(model, built, site.data.train, experiment.training, scope)
                built = built if state == "keep" else build_optimizer(model, experiment.training)
            assert torch.equal(payloads[-1], model.fold())
    assert not torch.equal(*payloads)


def test_a_rate_of_zero_freezes_its_group(micro: Callable[..., Experiment]) -> None:
    experiment = micro("data.phantom_sites=2", "training.prompt_lr=0", "model.tokens=1")
    federation = prepare_federation(experiment)
    site = federation.create_site(federation.data.sites["site-1"])
    with site.hold() as held:
        before = {name: parameter.clone() for name, parameter in held.model.named_parameters()}
    site.fit(experiment.training, 1, 1)
    with site.hold() as held:
        after = dict(held.model.named_parameters())
        changed = {name for name, parameter in after.items() if not torch.equal(parameter, before[name])}
    assert changed == {"embedded.tokens", "head.weight", "head.bias"}


def test_training_only_the_head_equals_training_with_a_prompt_rate_of_zero(micro: Callable[..., Experiment]) -> None:
    heads = []
    for method_lr in (0, 1e-3):
        # ept has no tensors for method_lr. The settings state that only the head is trained if method_lr is 0 as well.
        experiment = micro("training.prompt_lr=0", "training.token_lr=0", f"training.method_lr={method_lr}")
        site = (federation := prepare_federation(experiment)).create_site(federation.data.sites["site-1"])
        for number in (1, 2):
            site.fit(experiment.training, number, 2)
        with site.hold() as held:
            heads.append(held.model.head.weight.detach().clone())
    assert torch.equal(*heads)
    assert not torch.equal(heads[0], torch.from_numpy(federation.slot.start["model/head.weight"]))


def test_bfloat16_training_follows_float32(micro: Callable[..., Experiment]) -> None:
    losses = []
    for precision in ("float32", "bfloat16"):
        experiment = micro("data.phantom_sites=2", f"training.precision={precision}")
        federation = prepare_federation(experiment)
        site = federation.create_site(federation.data.sites["site-1"])
        losses.append(site.fit(experiment.training, 1, 1).loss)
        assert federation.slot.model.prompts.dtype == torch.float32
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
