"""Tests of personalisation at a site: each method is checked against its definition."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

from client.site.personalise import INTERPOLATION_GRID, fine_tune, interpolate, load_ditto
from client.site.site import Site
from ept_fed.config.experiment import Experiment, TrainingSettings
from ept_fed.protocol.messages import RoundRequest
from ept_fed.run_plan.plan import Plan
from ept_fed.training.loop import RoundScope, train_round
from ept_fed.training.optimizer import build_optimizer
from simulations.engine.virtual_sites import VirtualFederation, prepare_federation

Micro = Callable[..., Experiment]


def request_of(plan: Plan, round_number: int = 1) -> RoundRequest:
    return RoundRequest(plan.header(round_number), "train", plan.rounds, plan.initial, "train", plan.training)


def make_site(federation: VirtualFederation) -> Site:
    return federation.create_site(federation.data.sites["site-1"])


def head_of(site: Site, payload: np.ndarray | None = None) -> torch.Tensor:
    with site.hold(payload) as held:
        return held.model.head.weight.detach().clone()


def trained_sinks(micro: Micro, ditto: float | None) -> tuple[Plan, Site]:
    overrides = () if ditto is None else (f"personalisation.ditto={ditto}",)
    federation = prepare_federation(
        micro("training.optimizer=sgd", "training.prompt_lr=20", "training.epochs=5", *overrides)
    )
    plan, site = federation.plan(), make_site(federation)
    site.train(request_of(plan))
    return plan, site


def test_ditto_does_not_change_the_federated_round(micro: Micro) -> None:
    plain, with_ditto = (trained_sinks(micro, ditto)[1] for ditto in (None, 0.1))
    assert np.array_equal(plain.own_payload(), with_ditto.own_payload())


def test_a_strong_ditto_stays_near_the_global_prompts_and_a_weak_one_moves_away(micro: Micro) -> None:
    distances = []
    for strength in (0.1, 0.01, 1e-6):
        plan, site = trained_sinks(micro, strength)
        with site.hold() as held:
            assert load_ditto(held)
            distances.append(float(np.linalg.norm(held.export() - plan.initial)))
    assert distances[0] < distances[1] < distances[2]


def test_a_site_without_ditto_loads_no_ditto_model(micro: Micro) -> None:
    with trained_sinks(micro, None)[1].hold() as held:
        assert not load_ditto(held)


def test_ditto_continues_where_its_last_round_ended(micro: Micro) -> None:
    federation = prepare_federation(micro("personalisation.ditto=0.1"))
    plan, site = federation.plan(), make_site(federation)
    site.train(request_of(plan, 1))
    first = {name: tensor for name, tensor in site.state.tensors.items() if name.startswith("ditto/model")}
    site.train(request_of(plan, 2))
    again = make_site(federation)
    again.train(request_of(plan, 2))
    second, fresh = site.state.tensors, again.state.tensors
    assert any(not np.array_equal(second[name], first[name]) for name in first)
    assert any(not np.array_equal(second[name], fresh[name]) for name in first)


def test_fine_tuning_is_local_training_from_the_federated_model(micro: Micro) -> None:
    federation = prepare_federation(micro())
    plan, site = federation.plan(), make_site(federation)
    site.train(request_of(plan))
    before = site.state.tensors["model/head.weight"]
    with site.hold(plan.initial) as held:
        fine_tune(held, federation.experiment.training, epochs=2, seed=0)
        assert not np.array_equal(held.model.head.weight.detach().numpy(), before)
        assert not np.array_equal(held.export(), plan.initial)
    # Fine-tuning is not saved: the next federated round starts from the same state as without it.
    assert np.array_equal(site.state.tensors["model/head.weight"], before)


def test_interpolation_takes_the_share_with_the_lowest_validation_loss(micro: Micro) -> None:
    federation = prepare_federation(micro("training.prompt_lr=1.0", "federation.rounds=1"))
    plan, site = federation.plan(), make_site(federation)
    site.train(request_of(plan))
    own = site.own_payload()
    losses = []
    for share in INTERPOLATION_GRID:
        with site.hold((share * own + (1 - share) * plan.initial).astype(np.float32)) as held:
            losses.append(held.assess(site.data.validation)[1]["loss"])
    with site.hold() as held:
        share = interpolate(held, plan.initial)
        assert share == INTERPOLATION_GRID[int(np.argmin(losses))]
        np.testing.assert_allclose(held.export(), share * own + (1 - share) * plan.initial, rtol=1e-4, atol=1e-5)


def test_without_validation_images_interpolation_keeps_the_global_prompts(micro: Micro) -> None:
    federation = prepare_federation(micro("data.validation_fraction=0.0"))
    plan, site = federation.plan(), make_site(federation)
    site.train(request_of(plan))
    with site.hold() as held:
        assert interpolate(held, plan.initial) == 0
        np.testing.assert_allclose(held.export(), plan.initial, rtol=1e-5, atol=1e-6)


def test_sites_that_share_a_model_train_as_if_each_had_its_own(micro: Micro) -> None:
    shared = prepare_federation(micro("federation.rounds=2"))
    plan = shared.plan()
    sites = [shared.create_site(data) for data in shared.data.sites.values()]
    replies = [[site.train(request_of(plan, number)).payload for site in sites] for number in (1, 2)]
    for index, data in enumerate(shared.data.sites.values()):
        alone = prepare_federation(micro("federation.rounds=2")).create_site(data)
        for number in (1, 2):
            assert np.array_equal(alone.train(request_of(plan, number)).payload, replies[number - 1][index])


def test_a_repeated_round_gives_the_same_payload(micro: Micro) -> None:
    federation = prepare_federation(micro("federation.rounds=3"))
    plan, site = federation.plan(), make_site(federation)
    payloads = {number: site.train(request_of(plan, number)).payload for number in (1, 2, 3)}
    site.evaluate(dataclasses.replace(request_of(plan, 3), phase="evaluate", split="validation", settings=None))
    for number in (3, 2, 2, 3):
        assert np.array_equal(site.train(request_of(plan, number)).payload, payloads[number])


def test_after_an_early_stop_a_site_returns_to_the_state_that_fits_the_prompts(micro: Micro) -> None:
    federation = prepare_federation(micro("federation.rounds=3"))
    plan, site = federation.plan(), make_site(federation)
    site.train(request_of(plan, 1))
    head = head_of(site)
    site.train(request_of(plan, 2))
    site.select_round(1)
    assert torch.equal(head_of(site, plan.initial), head)
    # When it trains again, it continues from its latest state.
    site.train(request_of(plan, 3))
    assert site.trained_rounds == 3
    assert not torch.equal(head_of(site), head)


def test_fedreps_order_trains_only_the_head_and_then_only_the_prompts(micro: Micro) -> None:
    federation = prepare_federation(micro("model.tokens=1"))
    site, settings = (
        make_site(federation),
        TrainingSettings(epochs=1, head_first_epochs=2, batch_size=4, head="trained"),
    )
    moved: list[set[str]] = []

    def snapshot() -> dict[str, np.ndarray]:
        return {name: tensor.detach().numpy().copy() for name, tensor in model.named_parameters()}

    def watch() -> torch.Tensor:
        nonlocal last
        now = snapshot()
        moved.append({name for name in now if not np.array_equal(now[name], last[name])})
        last = now
        return torch.zeros(())

    scope = RoundScope(0, "site-1", 1, 1)
    with site.hold() as held:
        model = held.model
        last, optimizer = snapshot(), build_optimizer(model, settings)
        outcome = train_round(model, optimizer, site.data.train, settings, scope, penalties=[watch])
    per_epoch = outcome.steps // 3
    assert all(parameter.requires_grad for parameter in model.head.parameters())
    assert model.prompts.requires_grad
    for step, names in enumerate(moved[1:], start=1):
        assert all(name.startswith("head") == (step <= 2 * per_epoch) for name in names)
    assert any("head" in name for names in moved for name in names)
    assert any("prompts" in name for names in moved for name in names)


def test_a_site_returns_its_gradient_when_it_is_requested(micro: Micro) -> None:
    federation = prepare_federation(micro("model.tokens=1", "federation.share=prompts+head"))
    plan, site = federation.plan(), make_site(federation)
    wanted = dataclasses.replace(request_of(plan), wants_gradient=True)
    gradient = site.train(wanted).gradient
    assert gradient is not None
    assert site.train(request_of(plan)).gradient is None
    direction = np.random.default_rng(0).normal(size=plan.layout.size).astype(np.float32)
    direction /= np.linalg.norm(direction)

    def loss(step: float) -> float:
        with site.hold((plan.initial + step * direction).astype(np.float32)) as held:
            return held.assess(site.data.train)[1]["loss"]

    assert (loss(0.02) - loss(-0.02)) / 0.04 == pytest.approx(float(gradient @ direction), rel=0.05, abs=2e-4)


def test_a_correction_moves_the_payload_in_the_opposite_direction(micro: Micro) -> None:
    federation = prepare_federation(micro())
    plan, site = federation.plan(), make_site(federation)
    plain_sgd = plan.training.model_copy(update={"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0})
    request = dataclasses.replace(request_of(plan), settings=plain_sgd)
    free = site.train(request).payload
    correction = np.random.default_rng(0).normal(size=plan.layout.size).astype(np.float32)
    pulled = site.train(dataclasses.replace(request, correction=correction)).payload
    moved = pulled - free
    cosine = float(moved @ correction / np.linalg.norm(moved) / np.linalg.norm(correction))
    assert cosine < -0.95


def test_a_diverging_ditto_does_not_change_the_federated_round(micro: Micro) -> None:
    wild = prepare_federation(micro("personalisation.ditto=1e30", "training.optimizer=sgd", "training.epochs=3"))
    plain = prepare_federation(micro("training.optimizer=sgd", "training.epochs=3"))
    plan = plain.plan()
    sites = [make_site(federation) for federation in (wild, plain)]
    payloads = [site.train(request_of(plan)).payload for site in sites]
    assert np.array_equal(*payloads)
    with sites[0].hold() as held:
        assert not load_ditto(held)
