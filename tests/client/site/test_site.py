"""Tests of a site: its answers, its refusals, and the values that never leave it."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict

from client.in_process_app import create_client_app
from client.requests.respond import SitePart, respond
from client.site.site import Site
from ept_fed.config.experiment import Experiment
from ept_fed.flower.messages import encode_request
from ept_fed.flower.records import SITE_FAILED, SITE_REFUSED, read_frame_record
from ept_fed.flower.transport import set_task_identity
from ept_fed.models.tuned_vit import TunedViT
from ept_fed.protocol.frames import decode_frame, encode_frame
from ept_fed.protocol.layout import PayloadMismatchError, Vector
from ept_fed.protocol.messages import EVALUATE_METRICS, TRAIN_METRICS, MessageRefusedError, RoundReply, RoundRequest
from ept_fed.run_plan.plan import Plan
from ept_fed.training.loop import TrainingDivergedError
from simulations.engine.virtual_sites import prepare_federation
from tests.site_requests import part_of


@pytest.fixture
def plan_and_site(micro: Callable[..., Experiment]) -> tuple[Plan, Site]:
    federation = prepare_federation(micro("model.tokens=1"))
    return federation.plan(), federation.create_site(federation.data.sites["site-1"])


def train_request(plan: Plan, **changes: object) -> RoundRequest:
    request = RoundRequest(plan.header(1), "train", plan.rounds, plan.initial, "train", plan.training)
    return dataclasses.replace(request, **changes)


def parameters_of(site: Site, payload: Vector | None = None) -> list[torch.Tensor]:
    with site.hold(payload) as held:
        return [parameter.detach().clone() for parameter in held.model.parameters()]


def model_of(site: Site) -> TunedViT:
    """Return the model in memory. It keeps the tensors of its last holder, which `hold` would replace."""
    with site.hold() as held:
        return held.model


def test_a_trained_site_replies_with_its_payload_and_fixed_metrics(plan_and_site: tuple[Plan, Site]) -> None:
    plan, site = plan_and_site
    reply = site.train(train_request(plan))
    reply.check(plan.header(1), plan.layout)
    assert set(reply.metrics) == set(TRAIN_METRICS)
    assert reply.examples == len(site.data.train)
    assert not np.array_equal(reply.payload, plan.initial)


def test_evaluating_trains_nothing(plan_and_site: tuple[Plan, Site]) -> None:
    plan, site = plan_and_site
    request = train_request(plan, phase="evaluate", split="test", settings=None)
    before, adopted, model = parameters_of(site), parameters_of(site, request.payload), model_of(site)
    first, second = site.evaluate(request), site.evaluate(request)
    assert all(torch.equal(a, b) for a, b in zip(adopted, model.parameters(), strict=True))
    assert set(first.metrics) == set(EVALUATE_METRICS)
    assert {k: v for k, v in first.metrics.items() if k != "seconds"} == pytest.approx(
        {k: v for k, v in second.metrics.items() if k != "seconds"}, nan_ok=True
    )
    assert all(torch.equal(a, b) for a, b in zip(before, parameters_of(site), strict=True))


def test_training_again_from_the_same_state_gives_the_same_payload(
    micro: Callable[..., Experiment],
) -> None:
    federation = prepare_federation(micro("model.tokens=1"))
    plan = federation.plan()
    replies = [
        federation.create_site(federation.data.sites["site-1"]).train(train_request(plan)).payload for _ in range(2)
    ]
    assert np.array_equal(*replies)


def test_adopting_a_payload_keeps_the_shape_of_the_sites_own_columns(plan_and_site: tuple[Plan, Site]) -> None:
    plan, site = plan_and_site
    site.fit(plan.training, 1, 1)
    sinks = torch.from_numpy(plan.layout.unflatten(plan.initial)["sinks"])
    with site.hold() as held:
        shape = held.model.prompts - held.model.prompts[..., :1]
        for _ in range(2):
            held.adopt(plan.initial)
            torch.testing.assert_close(held.model.prompts - held.model.prompts[..., :1], shape, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(held.model.fold().detach(), sinks, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("field", ["run", "backbone_digest", "layout_hash", "code", "protocol"])
def test_a_request_with_a_foreign_header_is_refused_with_both_values(
    plan_and_site: tuple[Plan, Site], field: str
) -> None:
    plan, site = plan_and_site
    header = plan.header(1)
    other = dataclasses.replace(header, **{field: 99 if field == "protocol" else "other"})
    with pytest.raises(MessageRefusedError, match=r"theirs .*, ours "):
        site.require(train_request(plan, header=other))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"settings": None}, MessageRefusedError),
        ({"rounds": 0}, MessageRefusedError),
        ({"payload": np.zeros(3, np.float32)}, PayloadMismatchError),
    ],
)
def test_requests_out_of_range_are_refused(plan_and_site: tuple[Plan, Site], changes, error) -> None:
    plan, site = plan_and_site
    asked = train_request(plan, **changes)
    with pytest.raises(error):
        respond(asked, encode_frame(asked), part_of(site))


def test_a_payload_that_is_not_finite_never_reaches_the_model(plan_and_site: tuple[Plan, Site]) -> None:
    plan, site = plan_and_site
    poisoned, model = plan.initial.copy(), model_of(site)
    poisoned[3] = np.nan
    for asked in (train_request(plan, payload=poisoned), train_request(plan, correction=poisoned)):
        with pytest.raises(PayloadMismatchError, match="not finite"):
            respond(asked, encode_frame(asked), part_of(site))
        assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_a_diverged_round_leaves_the_site_as_it_was_before_training(plan_and_site: tuple[Plan, Site]) -> None:
    plan, site = plan_and_site
    before = parameters_of(site)
    wild = plan.training.model_copy(update={"head_lr": 1e30, "epochs": 5})
    with pytest.raises(TrainingDivergedError, match="lower the learning rates"):
        site.train(train_request(plan, settings=wild))
    last_step = {"head_lr": 3e38, "optimizer": "sgd", "weight_decay": 1e38, "batch_size": 4096}
    one_step = plan.training.model_copy(update=last_step)
    with pytest.raises(TrainingDivergedError, match="the last step"):
        site.train(train_request(plan, settings=one_step))
    assert all(torch.equal(a, b) for a, b in zip(before, parameters_of(site), strict=True))


def as_message(request: RoundRequest) -> Message:
    set_task_identity(1)
    return Message(encode_request(request), 7, request.phase)


def context() -> Context:
    return Context(run_id=1, node_id=7, node_config={"site": "site-1"}, state=RecordDict(), run_config={})


def test_a_refusal_is_sent_with_its_reason_and_a_failure_without_details(plan_and_site: tuple[Plan, Site]) -> None:
    plan, site = plan_and_site
    other = dataclasses.replace(plan.header(1), backbone_digest="poisoned")
    refused = create_client_app(lambda _: part_of(site))(as_message(train_request(plan, header=other)), context())
    assert refused.error.code == SITE_REFUSED
    assert "theirs poisoned" in refused.error.reason

    def fail(_: Context) -> SitePart:
        raise FileNotFoundError("/data/patient_007.dcm")

    failed = create_client_app(fail)(as_message(train_request(plan)), context())
    assert failed.error.code == SITE_FAILED
    assert "patient" not in failed.error.reason


def test_nothing_of_the_head_or_the_columns_is_in_a_prompts_only_reply(plan_and_site: tuple[Plan, Site]) -> None:
    plan, site = plan_and_site
    reply = create_client_app(lambda _: part_of(site))(as_message(train_request(plan)), context())
    frame = read_frame_record(reply)
    sent = decode_frame(frame)
    assert isinstance(sent, RoundReply)
    assert sent.payload is not None
    with site.hold() as held:
        L, T, D = len(held.model.layers), 1, held.model.vit.embed_dim
        tokens, head = held.model.backbone.num_tokens + T, held.model.head.weight.detach().numpy().tobytes()
    assert sent.payload.shape == (L * tokens + L * T * D,)
    assert head not in frame
