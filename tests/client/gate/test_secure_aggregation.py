"""Tests of updates under secure aggregation: checked before masking, sent once a round, recorded in the ledger."""

import json
import operator
from collections.abc import Iterator, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from client.gate.gate import Gate
from ept_fed.config.privacy import SecureAggregationSettings
from ept_fed.protocol.frames import encode_frame
from ept_fed.protocol.messages import Header
from ept_fed.protocol.proposal import Proposal, propose
from ept_fed.protocol.stage_messages import STAGES, StageReply, StageRequest
from tests.client.gated_kit import (
    BACKBONE,
    COUNTS,
    INITIAL,
    LAYOUT,
    RUN,
    WITH_MEANS,
    WITH_TOKENS,
    Kit,
    answer,
    evaluation,
    introduction,
    request,
    rules_of,
)

TRAINED = INITIAL + np.float32(0.5)


def stage(name: str, round_number: int = 1, **header: Any) -> StageRequest:
    return StageRequest(Header(**{**Header(RUN, round_number, BACKBONE, LAYOUT.hash).__dict__, **header}), name, b"")  # type: ignore[arg-type]


@pytest.fixture
def secure(tmp_path: Path, micro: Any) -> Kit:
    experiment = micro("data.classes=[a, b]", "federation.norm_bound=null", "federation.rounds=5")
    federation = experiment.federation.model_copy(update={"secure_aggregation": SecureAggregationSettings()})
    return Kit(tmp_path, propose(experiment.model_copy(update={"federation": federation}), ("east", "north", "south")))


def train(kit: Kit, gate: Gate, round_number: int = 1) -> None:
    asked = request(round_number)
    kit.admit(gate, asked)
    left = gate.release(asked, answer(asked, payload=None), LAYOUT)
    assert left.payload is None


def admit(kit: Kit, gate: Gate, asked: StageRequest) -> None:
    gate.admit_stage(asked, kit.agreed, LAYOUT, encode_frame(asked))


def give(kit: Kit, gate: Gate, name: str, round_number: int = 1) -> None:
    asked = stage(name, round_number)
    admit(kit, gate, asked)
    if name == "masked input":
        assert np.array_equal(gate.mask(asked, INITIAL, TRAINED, COUNTS["train"], LAYOUT), TRAINED)
    gate.release_stage(asked, encode_frame(StageReply(asked.header, asked.stage, b"masked")))


def test_a_masked_round_passes_and_the_ledger_has_every_message(secure: Kit) -> None:
    gate = secure.open()
    secure.join(gate)
    train(secure, gate)
    for name in STAGES:
        give(secure, gate, name)
    assert gate.secure_rounds(RUN) == 1
    entries = secure.entries()
    assert [entry.kind for entry in entries if entry.direction == "out"] == ["introduction", "train", *STAGES]
    (masked,) = [entry for entry in entries if entry.kind == "masked input" and entry.direction == "out"]
    assert (masked.decision, masked.rule, masked.tensors) == ("passed", "", LAYOUT.shapes)
    assert masked.images == COUNTS["train"]
    (trained,) = [entry for entry in entries if entry.kind == "train" and entry.direction == "out"]
    assert trained.tensors == ()
    assert secure.is_sound()


def test_a_plaintext_update_never_leaves_under_secure_aggregation(secure: Kit) -> None:
    gate = secure.open()
    secure.join(gate)
    asked = request()
    secure.admit(gate, asked)
    assert rules_of(lambda: gate.release(asked, answer(asked), LAYOUT)) == ("protocol.reply",)


@pytest.mark.parametrize("restart", [False, True])
def test_an_update_leaves_only_once_also_after_a_restart(secure: Kit, restart: bool) -> None:
    gate = secure.open()
    secure.join(gate)
    train(secure, gate)
    for name in STAGES[:3]:
        give(secure, gate, name)
    gate = secure.open() if restart else gate
    assert (gate.secure_rounds(RUN), gate.secure_rounds("another")) == (1, 0)
    for name in ("advertisement", "masked input"):
        assert rules_of(lambda name=name: admit(secure, gate, stage(name))) == ("protocol.replay",)
    train(secure, gate, 2)
    give(secure, gate, "advertisement", 2)


@pytest.mark.parametrize(
    ("asked", "rule"),
    [
        (stage("advertisement", 2), "protocol.replay"),
        (stage("advertisement", 1, run="run-b"), "protocol.run"),
        (stage("advertisement", 1, layout_hash="x"), "protocol.layout"),
        (stage("advertisement", 1, backbone_digest="x"), "protocol.backbone"),
        (stage("advertisement", 1, code="9"), "incoming.code"),
    ],
)
def test_a_stage_of_another_round_run_or_version_is_refused(secure: Kit, asked: StageRequest, rule: str) -> None:
    gate = secure.open()
    secure.join(gate)
    train(secure, gate)
    assert rules_of(lambda: admit(secure, gate, asked)) == (rule,)


def test_an_update_that_was_asked_for_and_did_not_leave_may_leave_after_a_restart(secure: Kit) -> None:
    gate = secure.open()
    secure.join(gate)
    train(secure, gate)
    admit(secure, gate, stage("masked input"))
    gate = secure.open()
    assert gate.secure_rounds(RUN) == 0
    give(secure, gate, "masked input")
    assert gate.secure_rounds(RUN) == 1


def test_stages_are_served_only_for_the_round_that_was_trained_last(secure: Kit) -> None:
    gate = secure.open()
    secure.join(gate)
    assert rules_of(lambda: admit(secure, gate, stage("advertisement"))) == ("protocol.replay",)
    secure.admit(gate, evaluation())
    assert rules_of(lambda: admit(secure, gate, stage("advertisement"))) == ("protocol.replay",)
    train(secure, gate)
    train(secure, gate, 2)
    assert rules_of(lambda: admit(secure, gate, stage("advertisement"))) == ("protocol.replay",)
    admit(secure, gate, stage("advertisement", 2))


def test_a_plaintext_run_serves_no_stage_and_can_be_refused_by_the_policy(tmp_path: Path, micro: Any) -> None:
    kit = Kit(tmp_path, propose(micro("data.classes=[a, b]")))
    gate = kit.open()
    kit.join(gate)
    kit.admit(gate, request())
    assert rules_of(lambda: admit(kit, gate, stage("advertisement"))) == ("protocol.stage",)
    strict = kit.open(outgoing__secure_aggregation_only=True)
    assert rules_of(lambda: kit.admit(strict, request(2))) == ("outgoing.secure_aggregation_only",)


def test_a_masked_update_must_follow_the_rules_for_plaintext_updates(secure: Kit) -> None:
    gate = secure.open()
    secure.join(gate)
    train(secure, gate)
    asked = stage("masked input")
    admit(secure, gate, asked)
    far, infinite = INITIAL + np.float32(1.5), np.full_like(INITIAL, np.inf)
    assert rules_of(lambda: gate.mask(asked, INITIAL, far, COUNTS["train"], LAYOUT)) == ("outgoing.update",)
    assert rules_of(lambda: gate.mask(asked, INITIAL, infinite, COUNTS["train"], LAYOUT)) == ("protocol.payload",)
    assert rules_of(lambda: gate.mask(asked, INITIAL, TRAINED, 9, LAYOUT)) == ("outgoing.min_training_images",)
    assert "protocol.layout" in rules_of(lambda: gate.mask(asked, INITIAL, TRAINED, COUNTS["train"], WITH_TOKENS))
    clipping = secure.open(outgoing__update={"bound": 1.0, "above": "clip"})
    np.testing.assert_allclose(clipping.mask(asked, INITIAL, far, COUNTS["train"], LAYOUT), INITIAL + 1, rtol=1e-6)
    clipping.release_stage(asked, b"masked")
    assert (secure.entries()[-1].decision, secure.entries()[-1].rule) == ("clipped", "outgoing.update")
    assert secure.entries()[-1].reason == "the update (sinks 1.5) was scaled down to 1"
    assert secure.entries()[-1].tensors == LAYOUT.shapes
    unsharing = secure.open(outgoing__tensors=["tokens"])
    assert rules_of(lambda: unsharing.mask(asked, INITIAL, TRAINED, 10, LAYOUT)) == ("outgoing.tensors",)


def test_statistics_of_few_images_are_not_masked(secure: Kit) -> None:
    gate = secure.open(outgoing__statistics="means")
    secure.join(gate, WITH_MEANS)
    asked, start = stage("masked input"), np.zeros(WITH_MEANS.size, np.float32)
    tensors = WITH_MEANS.unflatten(start)
    tensors["statistics.shares"][:] = [0.9, 0.1]
    trained = WITH_MEANS.flatten(tensors)
    assert rules_of(lambda: gate.mask(asked, start, trained, 40, WITH_MEANS)) == ("outgoing.min_class_images",)
    assert np.array_equal(gate.mask(asked, start, trained, 50, WITH_MEANS), trained)


def test_a_masked_input_that_was_not_checked_does_not_leave(secure: Kit) -> None:
    gate = secure.open()
    secure.join(gate)
    train(secure, gate)
    give(secure, gate, "advertisement")
    asked = stage("masked input")
    admit(secure, gate, asked)
    assert rules_of(lambda: gate.release_stage(asked, b"masked")) == ("protocol.stage",)
    gate.mask(asked, INITIAL, TRAINED, COUNTS["train"], LAYOUT)
    train(secure, gate, 2)
    assert rules_of(lambda: gate.release_stage(stage("masked input", 2), b"masked")) == ("protocol.stage",)


def test_a_check_before_masking_counts_for_one_message(secure: Kit) -> None:
    gate = secure.open()
    secure.join(gate)
    train(secure, gate)
    give(secure, gate, "masked input")
    assert rules_of(lambda: gate.release_stage(stage("masked input"), b"masked")) == ("protocol.stage",)


def test_the_rules_for_requests_hold_under_secure_aggregation_too(secure: Kit) -> None:
    gate = secure.open()
    secure.join(gate)
    for asked, rule in (
        (request(rounds=10_000), "incoming.rounds"),
        (request(payload=INITIAL + np.float32(2)), "incoming.prompt_change"),
    ):
        assert rules_of(lambda asked=asked: secure.admit(gate, asked, frame=b"frame")) == (rule,)


def test_no_gradient_leaves_and_no_site_gets_its_own_correction(secure: Kit) -> None:
    gate = secure.open(outgoing__gradient=True, incoming__correction=True)
    secure.join(gate)
    for asked in (request(wants_gradient=True), request(correction=INITIAL)):
        assert rules_of(lambda asked=asked: secure.admit(gate, asked)) == ("protocol.request",)


def test_a_round_whose_update_left_is_not_trained_again(secure: Kit) -> None:
    gate = secure.open()
    secure.join(gate)
    train(secure, gate)
    for name in STAGES[:3]:
        give(secure, gate, name)
    assert rules_of(lambda: secure.admit(gate, request())) == ("protocol.replay",)


def offer(gate: Gate, proposal: Proposal, run: str) -> None:
    gate.admit_proposal(run, proposal, b"frame")


def leave_masked_update(secure: Kit, gate: Gate) -> None:
    train(secure, gate)
    for name in STAGES[:3]:
        give(secure, gate, name)


def test_a_seed_is_used_by_one_run_once_a_masked_update_left(secure: Kit) -> None:
    gate, twin = secure.open(), secure.proposal.model_copy(update={"name": "another"})
    secure.join(gate)
    offer(gate, twin, "run-b")
    leave_masked_update(secure, gate)
    assert rules_of(lambda: offer(gate, twin, "run-b")) == ("protocol.run",)
    reopened = secure.open()
    assert rules_of(lambda: offer(reopened, twin, "run-b")) == ("protocol.run",)
    secure.join(reopened)
    offer(reopened, twin.model_copy(update={"seed": twin.seed + 1}), "run-c")


def test_a_twin_that_was_agreed_on_before_is_refused_at_its_next_request(secure: Kit) -> None:
    gate, twin = secure.open(), secure.proposal.model_copy(update={"name": "another"})
    secure.join(gate)
    offer(gate, twin, "run-b")
    met = introduction(twin, run="run-b", initial=INITIAL)
    gate.release_introduction("run-b", met, b"frame", counts=COUNTS)
    leave_masked_update(secure, gate)
    header = Header("run-b", 1, BACKBONE, LAYOUT.hash)
    for act in (
        lambda: gate.admit(request(header=header), twin, LAYOUT, b"frame"),
        lambda: gate.admit_stage(StageRequest(header, "masked input", b""), twin, LAYOUT, b"frame"),
    ):
        assert "protocol.run" in rules_of(act)
    secure.admit(gate, request(2))


def other_values(value: Any, path: tuple[str, ...]) -> list[Any]:
    """Return values that a field may have instead; whoever is not valid is left out by the settings themselves."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value - 1]
    if isinstance(value, float):
        return [value * 1.001, value / 2]
    if isinstance(value, str):
        return [*CHOICES.get(path[-1], ()), f"{value}x"]
    if isinstance(value, (list, tuple)):
        return [value[:-1], [*value, "south-2"]]
    return [1, 0.5, "random", {}, True]


CHOICES: dict[str, tuple[str, ...]] = {
    "strategy": ("fedavgm", "fedprox"),
    "weights": ("uniform", "capped"),
    "share": ("prompts+head",),
    "payload": ("raw",),
    "select": ("last", "best"),
    "head": ("fixed", "lda", "fixed+lda"),
    "optimizer": ("sgd",),
    "statistics": ("moments",),
}


def leaves(document: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in document.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*path, name))
        else:
            yield (*path, name)


def test_a_twin_that_differs_in_any_setting_but_the_seed_is_refused(secure: Kit) -> None:
    gate = secure.open(outgoing__head=True)
    secure.join(gate)
    leave_masked_update(secure, gate)
    whole = secure.proposal.model_dump(mode="json")
    tried = set()
    for path in leaves(whole):
        for value in other_values(reduce(operator.getitem, path, whole), path):
            document = json.loads(json.dumps(whole))
            reduce(operator.getitem, path[:-1], document)[path[-1]] = value
            try:
                twin = Proposal.model_validate(document)
            except ValidationError:
                continue
            if path == ("seed",):
                offer(gate, twin, f"run-{value}")
                continue
            tried.add(path)
            assert "protocol.run" in rules_of(lambda twin=twin: offer(gate, twin, "run-b")), path
    # Every section of the settings was varied, among them all that only the server uses.
    assert {path[0] for path in tried} == set(whole) - {"seed"}
    known = {"rounds", "weights", "strategy", "grace", "deadline", "patience", "max_examples"}
    assert known <= {path[1] for path in tried if path[0] == "federation"}
    assert ("personalisation", "interpolate") in tried


def test_sums_of_fewer_sites_than_the_policy_requires_are_refused(secure: Kit) -> None:
    gate = secure.open(outgoing__min_secure_aggregation_sites=4)
    assert rules_of(lambda: secure.join(gate)) == ("outgoing.min_secure_aggregation_sites",)


def test_a_reply_without_an_update_does_not_leave_if_it_covers_too_few_images(secure: Kit) -> None:
    asked = request()
    secure.join(secure.open())
    gate = secure.open(outgoing__min_training_images=1000)
    secure.admit(gate, asked)
    assert rules_of(lambda: gate.release(asked, answer(asked, payload=None), LAYOUT)) == (
        "outgoing.min_training_images",
    )


def test_a_stage_is_checked_against_the_current_policy(secure: Kit) -> None:
    gate = secure.open()
    secure.join(gate)
    train(secure, gate)
    stricter = secure.open(incoming__backbone=["0" * 64])
    assert rules_of(lambda: admit(secure, stricter, stage("advertisement"))) == ("incoming.backbone",)


def test_the_ledger_names_the_sites_whose_updates_are_summed(secure: Kit) -> None:
    secure.join(secure.open())
    (proposed,) = [entry for entry in secure.entries() if entry.kind == "introduce"]
    assert proposed.about["masked among"] == "east, north, south"
