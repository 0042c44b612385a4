"""Private training: noise of the stated size, no image above the clip, no draw from a seed, and no crash."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from client.site.privacy_plan import RoundCost, plan_private_round
from client.site.site import Site
from ept_fed.config.experiment import TrainingSettings
from ept_fed.errors import InputRefusedError
from ept_fed.models import PromptedViT
from ept_fed.privacy.dp.accountant import GaussianSteps, spent_epsilon
from ept_fed.protocol.messages import MessageRefusedError
from ept_fed.run_plan.plan import Plan
from ept_fed.training import private_loop
from ept_fed.training.loop import RoundScope
from ept_fed.training.optimizer import build_optimizer
from ept_fed.training.private_loop import add_noise, train_private_round
from tests.site_requests import request_of

SCOPE = RoundScope(0, "site-1", 1, 2)


def private(clip: float = 1.0, noise: float = 1.0) -> str:
    return f"training.privacy={{clip: {clip}, noise_multiplier: {noise}}}"


def never_drawn(size: int) -> bytes:
    """Return the bytes of a source whose draws are all maximal: no image, and noise of 8.2 standard deviations."""
    return b"\xff" * size


def test_the_noise_on_every_tensor_has_the_stated_deviation() -> None:
    sums = {"sinks": torch.full((200, 300), 5.0, dtype=torch.float64), "tokens": torch.zeros(40_000).double()}
    noisy = add_noise(sums, 0.25)
    for name, tensor in noisy.items():
        drawn = (tensor - sums[name]) / 0.25
        assert abs(drawn.mean()) < 6 / drawn.numel() ** 0.5
        assert abs(drawn.var() - 1) < 6 * (2 / drawn.numel()) ** 0.5


@pytest.mark.parametrize("overrides", [(), ("model.tokens=1", "federation.share=prompts+head")])
def test_without_noise_a_step_of_sgd_is_no_longer_than_the_clip(
    site_of: Callable[..., tuple[Plan, Site]], overrides: tuple[str, ...]
) -> None:
    _, site = site_of(private(), *overrides)
    settings = TrainingSettings(
        optimizer="sgd", momentum=0.0, weight_decay=0.0, schedule="constant", prompt_lr=1.0, token_lr=1.0, head_lr=1.0,
        privacy={"clip": 0.01, "noise_multiplier": 1e-9},
    )  # fmt: skip
    step = GaussianSteps(1e-9, 1.0, 1)
    with site.hold() as held:
        model = held.model
        assert isinstance(model, PromptedViT)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        before = [parameter.detach().clone() for parameter in trained]
        train_private_round(model, build_optimizer(model, settings), site.data.train, settings, SCOPE, step)
        moved = [parameter.detach() - old for parameter, old in zip(trained, before, strict=True)]
    assert 0 < sum(tensor.square().sum() for tensor in moved) ** 0.5 <= 0.01 * (1 + 1e-5)


def test_a_private_round_never_gives_the_same_result_twice(site_of: Callable[..., tuple[Plan, Site]]) -> None:
    payloads = []
    for _ in range(2):
        plan, site = site_of(private())
        torch.manual_seed(0)
        payloads.append(site.train(request_of(plan)).payload)
    assert not np.array_equal(*payloads)


def test_the_loss_over_training_images_stays_at_the_site(site_of: Callable[..., tuple[Plan, Site]]) -> None:
    plan, site = site_of(private())
    reply = site.train(request_of(plan))
    assert np.isnan(reply.metrics["loss"])
    reply.check(plan.header(1), plan.layout, private=True)
    with pytest.raises(MessageRefusedError, match="finite loss"):
        reply.check(plan.header(1), plan.layout)
    plain = site_of()
    with pytest.raises(MessageRefusedError, match="must not carry its loss"):
        plain[1].train(request_of(plain[0])).check(plain[0].header(1), plain[0].layout, private=True)


def test_an_empty_sample_still_makes_a_step_of_noise(site_of: Callable[..., tuple[Plan, Site]]) -> None:
    _, site = site_of(private(), "model.tokens=1")
    settings = TrainingSettings(head="trained", privacy={"clip": 1.0, "noise_multiplier": 1.0})
    with site.hold() as held:
        before = held.model.head.weight.detach().clone()
        outcome = train_private_round(
            held.model,
            build_optimizer(held.model, settings),
            site.data.train,
            settings,
            SCOPE,
            GaussianSteps(1.0, 0.5, 1),
            entropy=never_drawn,
        )
        assert outcome.steps == 1
        assert not torch.equal(before, held.model.head.weight)


def test_a_sample_of_one_and_one_larger_than_the_batch_are_trained_on(
    site_of: Callable[..., tuple[Plan, Site]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, site = site_of(private(), "model.tokens=1")
    settings = TrainingSettings(batch_size=2, privacy={"clip": 1.0, "noise_multiplier": 1.0})
    with site.hold() as held:
        for drawn in ([0], list(range(len(site.data.train)))):
            monkeypatch.setattr(private_loop, "draw_poisson_sample", lambda *_, drawn=drawn, **__: np.array(drawn))
            step = GaussianSteps(1.0, 0.5, 1)
            optimizer = build_optimizer(held.model, settings)
            train_private_round(held.model, optimizer, site.data.train, settings, SCOPE, step)
        assert all(torch.isfinite(parameter).all() for parameter in held.model.parameters())


def test_a_damaged_image_does_not_end_the_round_or_bypass_the_clip(
    site_of: Callable[..., tuple[Plan, Site]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plan, site = site_of(private())
    honest = site.data.train.batches

    def batches(*given: object, **named: object) -> object:
        for images, labels in honest(*given, **named):  # type: ignore[arg-type]
            images[0] = torch.nan
            yield images, labels

    monkeypatch.setattr(site.data.train, "batches", batches)
    reply = site.train(request_of(plan))
    assert np.isfinite(reply.payload).all()
    assert "left out" in caplog.text


def test_a_round_is_planned_before_it_begins() -> None:
    settings = TrainingSettings(epochs=3, batch_size=8, privacy={"clip": 1.0, "noise_multiplier": 1.5})
    assert plan_private_round(settings, 63, 5) == GaussianSteps(1.5, 8 / 63, 24)
    assert plan_private_round(settings, 5, 5) == GaussianSteps(1.5, 1.0, 3)


@pytest.mark.parametrize("images", [5, 63, 400])
def test_all_rounds_together_meet_the_requested_epsilon(images: int) -> None:
    settings = TrainingSettings(privacy={"clip": 1.0, "epsilon": 3.0, "delta": 1e-4})
    plan = plan_private_round(settings, images, 6)
    assert 2.9 < spent_epsilon([plan] * 6, 1e-4) <= 3.0


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"privacy": None}, "training.privacy differs from"),
        ({"privacy": {"clip": 2.0, "noise_multiplier": 1.0}}, "training.privacy differs from"),
        ({"class_balanced": True}, "training.class_balanced"),
        ({"head_first_epochs": 1}, "training.head_first_epochs"),
    ],
)
def test_a_server_cannot_request_less_privacy_in_a_single_round(
    site_of: Callable[..., tuple[Plan, Site]], changes: dict[str, object], named: str
) -> None:
    plan, site = site_of(private())
    asked = TrainingSettings.model_validate(plan.training.model_dump() | changes)
    with pytest.raises(MessageRefusedError, match=named):
        site.train(request_of(plan, settings=asked))


def test_the_gradient_over_all_images_is_refused(site_of: Callable[..., tuple[Plan, Site]]) -> None:
    plan, site = site_of(private())
    with pytest.raises(MessageRefusedError, match="gradient"):
        site.train(request_of(plan, wants_gradient=True))


def test_a_refused_charge_prevents_the_round(
    site_of: Callable[..., tuple[Plan, Site]], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, site = site_of(private())
    asked: list[RoundCost] = []

    def charge(cost: RoundCost) -> None:
        asked.append(cost)
        raise MessageRefusedError("outgoing.budget")

    monkeypatch.setattr("client.site.site.train_local_round", lambda *_, **__: pytest.fail("it trained"))
    with pytest.raises(MessageRefusedError, match="budget"):
        site.train(request_of(plan), charge=charge)
    images = len(site.data.train)
    assert [cost.spending for cost in asked] == [GaussianSteps(1.0, 4 / images, -(-images // 4))]


def test_settings_without_privacy_are_not_trained_privately(site_of: Callable[..., tuple[Plan, Site]]) -> None:
    _, site = site_of()
    settings = TrainingSettings()
    with pytest.raises(InputRefusedError, match=r"training\.privacy"):
        plan_private_round(settings, 10, 1)
    with site.hold() as held:
        optimizer = build_optimizer(held.model, settings)
        with pytest.raises(InputRefusedError, match=r"training\.privacy"):
            train_private_round(held.model, optimizer, site.data.train, settings, SCOPE, GaussianSteps(1.0, 0.5, 1))
