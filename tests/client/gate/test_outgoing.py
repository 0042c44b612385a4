"""Tests of outgoing messages at the gate: for any result of a site, only values that the policy allows leave."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ept_fed.catalog.methods import METHODS
from ept_fed.protocol.frames import encode_frame
from ept_fed.protocol.layout import PayloadLayout
from ept_fed.protocol.messages import (
    EVALUATE_METRICS,
    TRAIN_METRICS,
    Header,
    MessageRefusedError,
)
from ept_fed.protocol.proposal import Proposal
from tests.client.gated_kit import (
    BACKBONE,
    COUNTS,
    FUZZED,
    INITIAL,
    LAYOUT,
    RUN,
    STRICT,
    WITH_HEAD,
    WITH_MEANS,
    WITH_TOKENS,
    Kit,
    agreed_on,
    answer,
    evaluation,
    fuzzed_gate,
    introduction,
    request,
    rules_of,
)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"layout": WITH_HEAD, "initial": np.zeros(16, np.float32)}, "outgoing.head"),
        ({"layout": PayloadLayout((("prompts", (2, 3, 1)),))}, "outgoing.tensors"),
        ({"layout": PayloadLayout(LAYOUT.shapes, ("patient Jane Roe",))}, "protocol.layout"),
        ({"layout": PayloadLayout(LAYOUT.shapes, ("class carcinoma of Jane Roe",))}, "protocol.layout"),
        ({"initial": np.full(6, np.nan, np.float32)}, "protocol.payload"),
        ({"initial": np.zeros(6)}, "protocol.payload"),
        ({"examples": 9}, "outgoing.min_training_images"),
        ({"site": "Jane Roe"}, "protocol.site"),
        ({"run": "other"}, "protocol.run"),
        ({"proposal": "00" * 32}, "protocol.run"),
        ({"code": "0"}, "protocol.version"),
        ({"protocol": 0}, "protocol.version"),
    ],
)
def test_an_introduction_outside_the_policy_does_not_leave(kit: Kit, change: dict[str, Any], rule: str) -> None:
    gate = kit.open()
    gate.admit_proposal(RUN, kit.proposal, b"frame")
    met = dataclasses.replace(introduction(kit.proposal), **change)
    assert rules_of(lambda: gate.release_introduction(RUN, met, b"frame", counts=COUNTS)) == (rule,)
    assert rules_of(lambda: kit.admit(gate, request())) == ("protocol.run",)


def test_an_introduction_leaves_only_if_its_run_was_proposed_to_this_gate(kit: Kit) -> None:
    met = introduction(kit.proposal)
    for joined in (False, True):
        if joined:
            kit.join(kit.open())
        gate = kit.open(outgoing__budget={"epsilon": 8.0})
        assert rules_of(lambda: gate.release_introduction(RUN, met, b"frame", counts=COUNTS)) == ("protocol.run",)  # noqa: B023


@pytest.mark.parametrize("change", [{"backbone_digest": "cd" * 32}, {"layout": WITH_TOKENS}])
def test_a_site_introduces_itself_again_only_with_equal_backbone_and_layout(kit: Kit, change: dict[str, Any]) -> None:
    gate = kit.open(incoming__backbone=[BACKBONE, "cd" * 32])
    kit.join(gate)
    layout = change.get("layout", LAYOUT)
    met = introduction(kit.proposal, **change, initial=np.zeros(layout.size, np.float32))
    assert rules_of(lambda: gate.release_introduction(RUN, met, b"frame", counts=COUNTS)) == ("protocol.run",)
    kit.join(gate)
    kit.admit(gate, request())


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_layout_description_of_every_method_may_leave(kit: Kit, method: str) -> None:
    info = METHODS[method]
    said = (f"method {method}", *(f"{name} {option.default:g}" for name, option in info.options.items()))
    gate = kit.open()
    gate.admit_proposal(RUN, kit.proposal, b"frame")
    met = introduction(kit.proposal, layout=PayloadLayout(LAYOUT.shapes, (*said, "class a")))
    gate.release_introduction(RUN, met, encode_frame(met), counts=COUNTS)


@pytest.mark.parametrize("restart", [False, True])
def test_the_first_backbone_is_kept_over_restarts_and_a_list_overrides_it(kit: Kit, restart: bool) -> None:
    gate = kit.open()
    kit.join(gate)
    gate = kit.open() if restart else gate
    gate.admit_proposal("run-b", kit.proposal, b"frame")
    other = introduction(kit.proposal, run="run-b", backbone_digest="cd" * 32)
    assert rules_of(lambda: gate.release_introduction("run-b", other, b"frame", counts=COUNTS)) == (
        "incoming.backbone",
    )
    gate = kit.open(incoming__backbone=["cd" * 32])
    gate.admit_proposal("run-b", kit.proposal, b"frame")
    gate.release_introduction("run-b", other, b"frame", counts=COUNTS)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"payload": np.full(6, np.inf, np.float32)}, "protocol.reply"),
        ({"payload": INITIAL.astype(np.float64)}, "protocol.reply"),
        ({"payload": np.zeros(7, np.float32)}, "protocol.reply"),
        ({"payload": INITIAL.reshape(2, 3)}, "protocol.reply"),
        ({"payload": None}, "protocol.reply"),
        ({"payload": INITIAL.tolist()}, "protocol.payload"),
        ({"payload": INITIAL + np.float32(1.1)}, "outgoing.update"),
        ({"gradient": INITIAL}, "protocol.reply"),
        ({"examples": 3}, "outgoing.min_training_images"),
        ({"examples": True}, "protocol.reply"),
        ({"metrics": {**dict.fromkeys(TRAIN_METRICS, 1.0), "patient": 1.0}}, "outgoing.metrics"),
        ({"metrics": dict.fromkeys(TRAIN_METRICS, "Jane Roe")}, "outgoing.metrics"),
        ({"metrics": list(TRAIN_METRICS)}, "outgoing.metrics"),
        ({"metrics": None}, "outgoing.metrics"),
        ({"metrics": dict.fromkeys(TRAIN_METRICS, math.inf)}, "protocol.reply"),
        ({"header": Header("Jane Roe", 1, BACKBONE, LAYOUT.hash)}, "protocol.reply"),
        ({"phase": "evaluate"}, "protocol.reply"),
    ],
)
def test_a_reply_outside_the_policy_does_not_leave(kit: Kit, change: dict[str, Any], rule: str) -> None:
    gate = kit.open()
    kit.join(gate)
    asked = request()
    kit.admit(gate, asked)
    assert rules_of(lambda: gate.release(asked, answer(asked, **change), LAYOUT)) == (rule,)
    assert (kit.entries()[-1].direction, kit.entries()[-1].decision) == ("out", "refused")
    assert gate.release(asked, answer(asked), LAYOUT).payload is not None


def test_a_payload_of_the_right_size_but_another_layout_does_not_leave(kit: Kit) -> None:
    gate = kit.open()
    kit.join(gate)
    asked = request()
    kit.admit(gate, asked)
    other = PayloadLayout((("sinks", (3, 2)),), LAYOUT.meaning)
    foreign = request(header=Header(RUN, 1, BACKBONE, other.hash))
    for request_, layout in ((asked, other), (foreign, LAYOUT), (foreign, other)):
        refused = rules_of(lambda: gate.release(request_, answer(request_), layout))  # noqa: B023
        assert refused == ("protocol.layout",)


@pytest.mark.parametrize("above", ["refuse", "clip"])
def test_an_update_from_the_minimum_number_of_images_and_of_the_largest_length_leaves_unchanged(
    kit: Kit, above: str
) -> None:
    gate = kit.open(outgoing__update={"bound": 1.0, "above": above})
    gate.admit_proposal(RUN, kit.proposal, b"frame")
    gate.release_introduction(RUN, introduction(kit.proposal, examples=10), b"frame", counts=COUNTS)
    asked = request(payload=np.zeros(6, np.float32))
    kit.admit(gate, asked)
    gate.release(asked, answer(asked, payload=np.ones(6, np.float32), examples=10), LAYOUT)
    assert kit.entries()[-1].decision == "passed"


def test_a_head_leaves_only_if_both_rules_allow_it(kit: Kit) -> None:
    document = kit.proposal.model_dump()
    document["federation"] |= {"share": "prompts+head"}
    wanted = Proposal.model_validate(document)
    assert rules_of(lambda: kit.join(kit.open(), WITH_HEAD, wanted)) == ("incoming.share",)
    shared = {"incoming__share": ["prompts+head"]}
    assert rules_of(lambda: kit.join(kit.open(**shared), WITH_HEAD, wanted)) == ("outgoing.head",)
    gate = kit.open(**shared, outgoing__head=True)
    kit.join(gate, WITH_HEAD, wanted)
    asked = request(layout=WITH_HEAD)
    kit.admit(gate, asked, WITH_HEAD)
    gate.release(asked, answer(asked), WITH_HEAD)
    assert "head.weight" in {name for name, _ in kit.entries()[-1].tensors}
    stricter = kit.open(**shared)
    assert "outgoing.head" in rules_of(lambda: stricter.release(asked, answer(asked), WITH_HEAD))


def test_statistics_leave_only_if_allowed_and_only_for_classes_with_enough_images(kit: Kit) -> None:
    wanted = agreed_on(kit.proposal, federation={"share": "prompts+head"}, training={"head": "lda"})
    shared = {"incoming__share": ["prompts+head"]}
    with_moments = PayloadLayout((*WITH_MEANS.shapes, ("statistics.moments", (10,))), WITH_MEANS.meaning)
    for allowed, layout in ((None, WITH_MEANS), (None, with_moments), ("means", with_moments)):
        refused = rules_of(lambda: kit.join(kit.open(**shared, outgoing__statistics=allowed), layout, wanted))  # noqa: B023
        assert set(refused) == {"outgoing.statistics"}
    gate = kit.open(**shared, outgoing__statistics="means")
    kit.join(gate, WITH_MEANS, wanted)
    asked = request(layout=WITH_MEANS, settings=wanted.training)
    kit.admit(gate, asked, WITH_MEANS)
    for images, leaves in ((0, True), (1, False), (4, False), (5, True)):
        trained = WITH_MEANS.unflatten(asked.payload)
        trained["statistics.shares"][:] = [1 - images / COUNTS["train"], images / COUNTS["train"]]
        reply = answer(asked, payload=WITH_MEANS.flatten(trained))
        if leaves:
            assert gate.release(asked, reply, WITH_MEANS).payload is not None
        else:
            refused = rules_of(lambda: gate.release(asked, reply, WITH_MEANS))  # noqa: B023
            assert refused == ("outgoing.min_class_images",)


def test_statistics_leave_only_after_a_round_and_are_exempt_from_the_update_bound(kit: Kit) -> None:
    wanted = agreed_on(kit.proposal, federation={"share": "prompts+head"}, training={"head": "lda"})
    allowed = {"incoming__share": ["prompts+head"], "outgoing__statistics": "means"}
    gate = kit.open(**allowed)
    gate.admit_proposal(RUN, wanted, b"frame")
    met = introduction(wanted, layout=WITH_MEANS, initial=np.ones(WITH_MEANS.size, np.float32))
    assert rules_of(lambda: gate.release_introduction(RUN, met, b"frame", counts=COUNTS)) == ("protocol.payload",)
    gate = kit.open(**allowed, outgoing__update={"bound": 0.1, "above": "clip"})
    kit.join(gate, WITH_MEANS, wanted)
    start = np.zeros(WITH_MEANS.size, np.float32)
    asked = request(layout=WITH_MEANS, payload=start, settings=wanted.training)
    kit.admit(gate, asked, WITH_MEANS)
    tensors = {name: np.full(shape, 0.5 if name == "sinks" else 3, np.float32) for name, shape in WITH_MEANS.shapes}
    left = gate.release(asked, answer(asked, payload=WITH_MEANS.flatten(tensors)), WITH_MEANS).payload
    assert left is not None
    found = WITH_MEANS.unflatten(left)
    np.testing.assert_allclose(found.pop("sinks"), 0.1, rtol=1e-5)
    assert all((tensor == 3).all() for tensor in found.values())


def test_a_gradient_leaves_only_if_the_policy_allows_it(kit: Kit) -> None:
    gate = kit.open(outgoing__gradient=True)
    kit.join(gate, proposal=agreed_on(kit.proposal, federation={"strategy": "scaffold"}))
    asked = request(wants_gradient=True)
    kit.admit(gate, asked)
    left = gate.release(asked, answer(asked, gradient=INITIAL), LAYOUT)
    assert np.array_equal(left.gradient, INITIAL)
    assert kit.entries()[-1].tensors == (*LAYOUT.shapes, ("gradient/sinks", (2, 3)))
    stricter = kit.open()
    refused = rules_of(lambda: stricter.release(asked, answer(asked, gradient=INITIAL), LAYOUT))
    assert refused == ("outgoing.gradient",)


def test_the_loss_of_private_training_does_not_leave(kit: Kit) -> None:
    gate = kit.open()
    private = agreed_on(kit.proposal, training={"privacy": {"clip": 1.0, "noise_multiplier": 4.0}})
    kit.join(gate, proposal=private)
    asked = request(settings=private.training)
    kit.admit(gate, asked)
    assert rules_of(lambda: gate.release(asked, answer(asked), LAYOUT)) == ("protocol.reply",)
    silent = {**dict.fromkeys(TRAIN_METRICS, 1.0), "loss": math.nan}
    assert gate.release(asked, answer(asked, metrics=silent), LAYOUT).payload is not None


def test_clipping_scales_the_update_to_the_bound_and_is_recorded(kit: Kit) -> None:
    gate = kit.open(outgoing__update={"bound": 0.25, "above": "clip"})
    kit.join(gate)
    asked = request()
    kit.admit(gate, asked)
    left = gate.release(asked, answer(asked), LAYOUT)
    np.testing.assert_allclose(left.payload - asked.payload, 0.25, rtol=1e-5)
    entry = kit.entries()[-1]
    assert (entry.decision, entry.rule) == ("clipped", "outgoing.update")
    assert entry.totals.sent.messages == 2


@pytest.mark.parametrize(("name", "numbers"), [("sinks", slice(0, 6)), ("tokens", slice(6, None))])
def test_an_update_is_bounded_tensor_by_tensor_and_clipping_keeps_its_direction(
    kit: Kit, name: str, numbers: slice
) -> None:
    asked = request(layout=WITH_TOKENS)
    trained = asked.payload + np.float32(0.1)
    trained[numbers] += np.float32(1.9)
    gate = kit.open()
    kit.join(gate, WITH_TOKENS)
    kit.admit(gate, asked, WITH_TOKENS)
    reply = answer(asked, payload=trained)
    assert rules_of(lambda: gate.release(asked, reply, WITH_TOKENS)) == ("outgoing.update",)
    assert f"{name} 2:" in kit.entries()[-1].reason
    left = kit.open(outgoing__update={"bound": 1.0, "above": "clip"}).release(asked, reply, WITH_TOKENS)
    np.testing.assert_allclose(left.payload - asked.payload, (trained - asked.payload) / 2, atol=1e-6)
    assert kit.entries()[-1].decision == "clipped"


def test_metrics_over_too_few_images_and_unlisted_ones_are_undefined_and_the_rest_is_rounded(kit: Kit) -> None:
    gate = kit.open(outgoing__metrics=["auc", "accuracy"], outgoing__digits=2)
    kit.join(gate)
    asked = evaluation(split="test")
    kit.admit(gate, asked)
    left = gate.release(asked, answer(asked), LAYOUT)
    assert left.examples == 0
    assert all(math.isnan(value) for value in left.metrics.values())
    asked = evaluation()
    kit.admit(gate, asked)
    metrics = {**dict.fromkeys(EVALUATE_METRICS, 0.98765), "classes_present": 2.0}
    left = gate.release(asked, answer(asked, metrics=metrics), LAYOUT)
    assert left.metrics["auc"] == left.metrics["accuracy"] == 0.99
    assert {name for name, value in left.metrics.items() if not math.isnan(value)} == {"auc", "accuracy"}
    assert kit.entries()[-1].metrics == ("auc", "accuracy")


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize(("minimum", "leaves"), [(20, True), (21, False)])
def test_validation_metrics_count_validation_images(kit: Kit, minimum: int, leaves: bool, restart: bool) -> None:
    gate = kit.open(outgoing__min_images=minimum)
    kit.join(gate)
    gate = kit.open(outgoing__min_images=minimum) if restart else gate
    asked = request()
    kit.admit(gate, asked)
    left = gate.release(asked, answer(asked), LAYOUT)
    assert math.isnan(left.metrics["validation_auc"]) != leaves
    assert (left.metrics["loss"], left.metrics["steps"], left.examples) == (1.0, 1.0, COUNTS["train"])
    left.check(asked.header, LAYOUT)
    kit.admit(gate, evaluation())
    left = gate.release(evaluation(), answer(evaluation()), LAYOUT)
    assert math.isnan(left.metrics["auc"]) != leaves
    assert left.metrics["seconds"] == 1.0
    assert left.examples == (COUNTS["validation"] if leaves else 0)


def test_of_a_train_reply_only_loss_and_steps_leave_if_no_metric_may(kit: Kit) -> None:
    gate = kit.open(outgoing__metrics=[])
    kit.join(gate)
    asked = request()
    kit.admit(gate, asked)
    left = gate.release(asked, answer(asked), LAYOUT)
    assert {name for name, value in left.metrics.items() if not math.isnan(value)} == {"loss", "steps"}
    assert kit.entries()[-1].rule == "outgoing.metrics"
    assert kit.entries()[-1].reason == f"withheld: {', '.join(TRAIN_METRICS[2:])}"


NUMBERS = st.one_of(st.floats(), st.integers(-(10**12), 10**12), st.booleans(), st.text(max_size=5), st.none())
VECTORS = st.one_of(
    st.none(),
    st.sampled_from(["float32", "float64", "float16", "int64", "complex64", "object", "<U5"]).flatmap(
        lambda dtype: st.sampled_from([(6,), (5,), (7,), (2, 3), (), (0,), (10_000,)]).map(
            lambda shape: np.ones(shape, dtype)
        )
    ),
    st.lists(st.floats(width=32), min_size=6, max_size=6).map(lambda values: np.array(values, np.float32)),
    st.binary(max_size=24),
    st.dictionaries(st.text(max_size=5), st.floats(), max_size=2),
)
METRICS = st.one_of(
    st.fixed_dictionaries(dict.fromkeys(TRAIN_METRICS, NUMBERS)),
    st.fixed_dictionaries({name: st.floats(0, 1) for name in TRAIN_METRICS} | {"steps": st.just(3.0)}),
    st.dictionaries(st.one_of(st.sampled_from(TRAIN_METRICS), st.text(max_size=8)), NUMBERS, max_size=12),
    st.text(),
)
HEADERS = st.one_of(
    st.just(request().header),
    st.builds(Header, st.text(max_size=9), st.integers(0, 9), st.text(max_size=9), st.text(max_size=9)),
    st.none(),
)
ANYTHING = st.fixed_dictionaries(
    {},
    optional={
        "header": HEADERS,
        "phase": st.sampled_from(["train", "evaluate", "secret", None]),
        "payload": VECTORS,
        "examples": NUMBERS,
        "metrics": METRICS,
        "gradient": VECTORS,
    },
)


@FUZZED
@given(changes=ANYTHING)
def test_only_content_that_the_policy_allows_leaves_with_any_reply(kit: Kit, changes: dict[str, Any]) -> None:
    gate, memory = fuzzed_gate(kit, STRICT)
    asked = request()
    kit.admit(gate, asked)
    try:
        left = gate.release(asked, answer(asked, **changes), LAYOUT)
    except MessageRefusedError as refusal:
        assert memory.decisions[-1] == ("out", "refused")
        assert set(str(refusal).removeprefix("the site's gate refuses it: ").split(", ")) <= {
            "outgoing.update",
            "outgoing.metrics",
            "outgoing.min_training_images",
            "protocol.reply",
            "protocol.payload",
            "protocol.gradient",
        }
        return
    assert memory.decisions[-1] == ("out", "passed")
    assert left.header is asked.header
    assert (left.phase, left.gradient) == ("train", None)
    assert type(left.payload) is np.ndarray
    assert (left.payload.dtype, left.payload.shape) == (np.float32, (6,))
    assert np.sqrt(np.mean((left.payload - asked.payload).astype(np.float64) ** 2)) <= 1.0
    assert list(left.metrics) == list(TRAIN_METRICS)
    assert all(
        type(value) is float and (math.isnan(value) or value == round(value, 3)) for value in left.metrics.values()
    )
    assert type(left.examples) is int
    assert len(encode_frame(left)) < 1500
