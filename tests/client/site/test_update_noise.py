"""Tests of noise on a site's whole update: the sent payload, the saved state, and the privacy cost."""

import dataclasses
import json
import math
from collections.abc import Callable

import numpy as np
import pytest

from client.gate.privacy_budget import BUDGET_FILE, read_budget
from client.gate.violations import PolicyViolationError
from client.report.privacy_spent import describe_charges
from client.site.privacy_plan import RoundCost
from client.site.site import Site
from client.site.update_noise import UpdateNoise
from ept_fed.config.privacy import SitePrivacySettings
from ept_fed.privacy.dp.accountant import GaussianSteps, spent_epsilon
from ept_fed.protocol.messages import TOLD_METRICS, MessageRefusedError, RoundRequest
from ept_fed.protocol.proposal import Proposal
from ept_fed.run_plan.plan import Plan
from tests.client.gated_kit import COUNTS, LAYOUT, Kit, answer, evaluation, introduction, request, rules_of
from tests.site_requests import request_of

WIDE = np.zeros(40_000, np.float32)
SiteOf = Callable[..., tuple[Plan, Site]]


def noise(source: str, clip: float = 1.0, **changes: object) -> SitePrivacySettings:
    return SitePrivacySettings.model_validate({"noise": source, "clip": clip, "noise_multiplier": 2.0, **changes})


def clear_of_site(**changes: object) -> tuple[str, str]:
    return "federation.rounds=2", f"federation.site_privacy={json.dumps(noise('local', **changes).model_dump())}"


@pytest.mark.parametrize(("source", "shares", "deviation"), [("local", 4, 1.0), ("distributed", 4, 0.5)])
def test_a_site_adds_all_of_the_noise_or_its_share(source: str, shares: int, deviation: float) -> None:
    covered = UpdateNoise(noise(source, 0.5), 3).cover(WIDE, WIDE, shares=shares)
    assert covered.std() == pytest.approx(deviation, rel=6 / math.sqrt(2 * len(WIDE)))
    assert covered.dtype == np.float32


def test_the_shares_of_the_minimum_number_of_sites_make_the_whole_noise() -> None:
    cover = UpdateNoise(noise("distributed", 0.5), 3).cover
    total = sum(cover(WIDE, WIDE, shares=3).astype(np.float64) for _ in range(3))
    assert np.std(total) == pytest.approx(1.0, rel=6 / math.sqrt(2 * len(WIDE)))


def test_a_norm_outlier_is_clipped_before_the_noise() -> None:
    quiet = UpdateNoise(noise("local", 0.5, noise_multiplier=1e-6), 3)
    covered = quiet.cover(WIDE, WIDE + 1, shares=1)
    assert np.linalg.norm(covered) == pytest.approx(0.5, rel=1e-3)


def test_central_noise_and_its_clipping_are_left_to_the_server() -> None:
    np.testing.assert_array_equal(UpdateNoise(noise("central", 0.5), 3).cover(WIDE, WIDE + 1), WIDE + 1)


def test_all_rounds_of_a_run_together_cost_its_epsilon() -> None:
    private = noise("local", noise_multiplier=None, epsilon=4.0)
    cost = UpdateNoise(private, 7).plan(request())
    assert 3.9 < spent_epsilon([cost.spending] * 7, 1e-5) <= 4.0


def test_the_sent_payload_has_noise_and_the_state_has_none(site_of: SiteOf) -> None:
    plan, plain = site_of()
    noisy_plan, noisy = site_of(*clear_of_site())
    sent, covered = plain.train(request_of(plan)).payload, noisy.train(request_of(noisy_plan)).payload
    assert sent is not None
    assert covered is not None
    assert np.abs(covered - sent).mean() > 0.3
    ours, theirs = noisy.state, plain.state
    assert ours is not None
    assert theirs is not None
    for name, tensor in theirs.tensors.items():
        np.testing.assert_array_equal(ours.tensors[name], tensor)


def test_a_round_that_is_trained_again_has_other_noise_and_is_charged_again(site_of: SiteOf) -> None:
    plan, site = site_of(*clear_of_site())
    charged: list[RoundCost] = []
    sent = [site.train(request_of(plan), charge=charged.append).payload for _ in range(2)]
    assert not np.array_equal(*sent)
    assert charged == [RoundCost("local gaussian", GaussianSteps(1.0, 1.0, 1), 1.0, 1e-5)] * 2


@pytest.mark.parametrize("metrics", [False, True])
def test_loss_and_quality_leave_only_if_the_run_allows_it(site_of: SiteOf, metrics: bool) -> None:
    plan, site = site_of(*clear_of_site(metrics=metrics))
    trained = site.train(request_of(plan))
    seen = RoundRequest(plan.header(1), "evaluate", plan.rounds, plan.initial, "validation")
    for reply in (trained, site.evaluate(seen)):
        told = {key for key, value in reply.metrics.items() if not math.isnan(value)}
        assert told <= set(TOLD_METRICS) or metrics
        assert ("loss" in told) == metrics
        reply.check(reply.header, site.layout, silent=plan.silent)


def test_prompts_that_leave_no_room_for_the_noise_are_refused_before_it_is_drawn() -> None:
    private = noise("distributed", 0.5)
    far = request(payload=request().payload + np.float32(40))
    UpdateNoise(private, 3).plan(far)
    with pytest.raises(MessageRefusedError, match="no room for noise and masks"):
        UpdateNoise(private, 3, secure_aggregation=True).plan(far)


@pytest.mark.parametrize("head", ["trained", "lda"])
def test_the_reported_steps_depend_only_on_the_number_of_images(site_of: SiteOf, head: str) -> None:
    plan, site = site_of(*clear_of_site(), f"training.head={head}")
    assert site.train(request_of(plan)).metrics["steps"] == plan.max_steps(len(site.data.train))


def test_the_gradient_over_all_images_is_refused(site_of: SiteOf) -> None:
    plan, site = site_of(*clear_of_site())
    with pytest.raises(MessageRefusedError, match="site_privacy"):
        site.train(request_of(plan, wants_gradient=True))


def propose_noise(kit: Kit, source: str = "local", **changes: object) -> Proposal:
    document = kit.proposal.model_dump(mode="json")
    document["federation"] |= {"site_privacy": noise(source, **changes).model_dump(mode="json")}
    if source == "distributed":
        document["federation"] |= {"secure_aggregation": {}, "norm_bound": None, "weights": "uniform"}
        document["sites"] = ["east", "north", "west"]
    return Proposal.model_validate(document)


@pytest.mark.parametrize("source", ["local", "distributed", "central"])
def test_with_a_budget_only_noise_that_the_policy_accepts_counts(kit: Kit, source: str) -> None:
    proposal = propose_noise(kit, source)
    believing = {"epsilon": 8.0, "noise": ["local", "distributed", "central"]}
    kit.join(kit.open(outgoing__budget=believing), proposal=proposal)
    gate = kit.open(outgoing__budget={"epsilon": 8.0})
    if source == "local":
        kit.admit(gate, request())
    else:
        assert rules_of(lambda: kit.admit(gate, request())) == ("outgoing.budget.noise",)


def test_a_clip_beyond_the_bound_on_updates_is_refused_before_anything_is_trained(kit: Kit) -> None:
    """A clip of 3 allows sinks of shape (2, 3) a root mean square of 1.22, and the policy allows 1."""
    gate = kit.open()
    assert rules_of(lambda: kit.join(gate, proposal=propose_noise(kit, clip=3.0))) == ("outgoing.update",)
    gate.admit_proposal("run-b", propose_noise(kit, clip=math.sqrt(6)), b"frame")
    met = introduction(propose_noise(kit, clip=math.sqrt(6)), run="run-b")
    gate.release_introduction("run-b", met, b"frame", counts=COUNTS)
    kit.join(kit.open(outgoing__update={"bound": 1.5}), proposal=propose_noise(kit, clip=3.0))
    assert rules_of(lambda: kit.admit(kit.open(), request())) == ("outgoing.update",)


def test_the_sites_own_noise_is_neither_refused_nor_scaled_down(kit: Kit) -> None:
    gate = kit.open(outgoing__update={"bound": 0.5, "above": "clip"})
    kit.join(gate, proposal=propose_noise(kit))
    kit.admit(gate, request())
    far = answer(request(), payload=request().payload + np.float32(7))
    hidden = {key: value if key in TOLD_METRICS else math.nan for key, value in far.metrics.items()}
    released = gate.release(request(), dataclasses.replace(far, metrics=hidden), LAYOUT)
    np.testing.assert_array_equal(released.payload, far.payload)


def test_an_update_is_bounded_if_only_the_server_adds_noise(kit: Kit) -> None:
    gate = kit.open()
    kit.join(gate, proposal=propose_noise(kit, "central"))
    kit.admit(gate, request())
    hidden = {key: 1.0 if key in TOLD_METRICS else math.nan for key in answer(request()).metrics}
    far = answer(request(), payload=request().payload + np.float32(7), metrics=hidden)
    assert rules_of(lambda: gate.release(request(), far, LAYOUT)) == ("outgoing.update",)


def test_with_a_budget_metrics_without_noise_are_refused(kit: Kit) -> None:
    gate = kit.open(outgoing__budget={"epsilon": 8.0})
    proposal = propose_noise(kit, metrics=True)
    assert rules_of(lambda: kit.join(gate, proposal=proposal)) == ("outgoing.budget",)
    kit.join(kit.open(), proposal=proposal)


def test_the_gate_refuses_metrics_of_a_run_without_metrics_also_after_a_restart(kit: Kit) -> None:
    kit.join(kit.open(), proposal=propose_noise(kit))
    for asked in (request(), evaluation()):
        gate = kit.open()
        kit.admit(gate, asked)
        reply = answer(asked)
        with pytest.raises(PolicyViolationError, match=r"protocol\.reply"):
            gate.release(asked, reply, LAYOUT)
        hidden = {key: value if key in TOLD_METRICS else math.nan for key, value in reply.metrics.items()}
        gate.release(asked, dataclasses.replace(reply, metrics=hidden), LAYOUT)
    (about,) = (entry.about for entry in kit.entries() if entry.kind == "introduce")
    assert about["noise"] == "local noise on updates of length 1 at most, metrics withheld"


def test_the_budget_records_the_cost_of_the_noise_and_refuses_to_overspend(kit: Kit) -> None:
    gate = kit.open(outgoing__budget={"epsilon": 4.0})
    kit.join(gate, proposal=propose_noise(kit))
    plan = UpdateNoise(noise("local", noise_multiplier=3.0), 2).plan
    gate.charge(request(), plan(request()))
    with pytest.raises(PolicyViolationError, match=r"outgoing\.budget"):
        gate.charge(request(2), plan(request(2)))
    (line,) = read_budget(kit.settings.worker.state / BUDGET_FILE)
    assert (line.mechanism, line.noise_multiplier, line.sampling_rate, line.steps) == ("local gaussian", 1.5, 1.0, 1)
    told = describe_charges([line], "run-a", silent=True)
    assert told is not None
    assert (told["covers"], told["noise"], told["rounds"]) == ("site", "local", 1)
