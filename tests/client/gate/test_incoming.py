"""Tests of incoming messages at the gate: only requests that the policy allows, in order, and within its bounds."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.gate.incoming import request_key
from client.gate.run_history import RequestKey
from client.gate.violations import PolicyViolationError
from ept_fed.config.experiment import TrainingSettings
from ept_fed.protocol.frames import encode_frame
from ept_fed.protocol.messages import (
    SPLITS,
    Header,
    MessageRefusedError,
    RoundRequest,
)
from ept_fed.protocol.proposal import Proposal
from tests.client.gated_kit import (
    BACKBONE,
    FUZZED,
    INITIAL,
    LAYOUT,
    RUN,
    STRICT,
    WITH_HEAD,
    WITH_TOKENS,
    Kit,
    agreed_on,
    evaluation,
    fuzzed_gate,
    request,
    rules_of,
)

FAR = INITIAL + np.float32(2.5)
JSON = TrainingSettings().model_dump()


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"model": {"method": "linear"}}, "incoming.methods"),
        ({"model": {"backbone": "hf-hub:someone/vit"}}, "incoming.backbone"),
        ({"model": {"tokens": 65}}, "incoming.tokens"),
        ({"model": {"initial_sink": 10.0}}, "incoming.initial_sink"),
        ({"model": {"prompt_length": 1001}}, "incoming.prompt_length"),
        ({"model": {"image_size": 4096}}, "incoming.image_size"),
        ({"federation": {"share": "prompts+head"}}, "incoming.share"),
        ({"federation": {"payload": "raw"}}, "incoming.payload"),
        ({"federation": {"rounds": 10_000}}, "incoming.rounds"),
        ({"personalisation": {"fine_tune_epochs": 999}}, "incoming.fine_tune_epochs"),
        ({"training": {"head": "fixed"}}, "incoming.heads"),
        ({"training": {"epochs": 1000}}, "incoming.training.epochs"),
        ({"training": {"batch_size": 1}}, "incoming.training.batch_size"),
        ({"training": {"prompt_lr": 50.0}}, "incoming.training.prompt_lr"),
    ],
)
def test_a_proposal_beyond_the_policy_is_refused_by_rule(kit: Kit, change: dict[str, Any], rule: str) -> None:
    gate = kit.open()
    document = kit.proposal.model_dump()
    for section, values in change.items():
        document[section] |= values
    wanted = Proposal.model_validate(document)
    assert rules_of(lambda: gate.admit_proposal(RUN, wanted, b"frame")) == (rule,)
    assert (kit.entries()[-1].decision, kit.entries()[-1].rule) == ("refused", rule)


def test_both_ends_of_every_range_are_allowed_and_an_internet_backbone_if_its_digest_is_pinned(kit: Kit) -> None:
    ranges = STRICT.incoming.training
    # The backbone's own size and no fine-tuning count as 0.
    own = {"incoming__image_size": [0, 0], "incoming__fine_tune_epochs": [0, 0]}
    for end in (0, 1):
        document = kit.proposal.model_dump(mode="json")
        document["model"] |= {"tokens": (0, 64)[end], "initial_sink": (0.0, 8.0)[end], "prompt_length": (1, 1000)[end]}
        document["model"] |= {"image_size": (None, 640)[end], "backbone": "hf-hub:someone/vit"}
        document["federation"] |= {"rounds": (1, 200)[end]}
        document["personalisation"] |= {"fine_tune_epochs": (None, 50)[end]}
        document["training"] |= {"epochs": int(ranges.epochs[end]), "batch_size": int(ranges.batch_size[end])}
        wanted = Proposal.model_validate(document)
        gate = kit.open(incoming__backbone=[BACKBONE], **({} if end else own))
        gate.admit_proposal(f"run-{end}", wanted, b"frame")


def test_all_rules_that_a_proposal_violates_are_named_together_and_no_value_leaves(kit: Kit) -> None:
    gate = kit.open()
    document = kit.proposal.model_dump()
    document["training"] |= {"epochs": 999, "batch_size": 1}
    with pytest.raises(PolicyViolationError) as refusal:
        gate.admit_proposal(RUN, Proposal.model_validate(document), b"frame")
    text = str(refusal.value)
    assert "incoming.training.epochs" in text
    assert "incoming.training.batch_size" in text
    assert "999" not in text
    assert "999" in kit.entries()[-1].reason


def test_a_run_cannot_be_proposed_again_with_other_settings(kit: Kit) -> None:
    gate = kit.open()
    kit.join(gate)
    kit.join(gate)
    other = kit.proposal.model_copy(update={"seed": 7})
    assert rules_of(lambda: gate.admit_proposal(RUN, other, b"frame")) == ("protocol.run",)
    assert rules_of(lambda: kit.open().admit_proposal(RUN, other, b"frame")) == ("protocol.run",)


@pytest.mark.parametrize(
    ("tighter", "rule"),
    [
        ({"incoming__methods": ["linear"]}, "incoming.methods"),
        ({"incoming__rounds": [1, 2]}, "incoming.rounds"),
        ({"incoming__tokens": [1, 20]}, "incoming.tokens"),
        ({"incoming__backbone": ["cd" * 32]}, "incoming.backbone"),
        ({"incoming__backbone": None}, "incoming.backbone"),
        ({"incoming__training": {"batch_size": [64, 256]}}, "incoming.training.batch_size"),
        ({"outgoing__budget": {"epsilon": 8.0}}, "outgoing.budget"),
    ],
)
def test_a_stricter_policy_stops_a_run_that_was_agreed_on_before(kit: Kit, tighter: dict[str, Any], rule: str) -> None:
    gate = kit.open()
    kit.join(gate)
    kit.admit(gate, request(1))
    stricter = kit.open(**tighter)
    for asked in (request(1), request(2), evaluation(2)):
        assert rules_of(lambda asked=asked: kit.admit(stricter, asked)) == (rule,)
        assert (kit.entries()[-1].decision, kit.entries()[-1].rule) == ("refused", rule)
    kit.admit(kit.open(), request(2))


def test_the_agreed_proposal_must_match_the_ledger(kit: Kit) -> None:
    gate = kit.open()
    kit.join(gate)
    kit.agreed = kit.proposal.model_copy(update={"seed": 7})
    assert rules_of(lambda: kit.admit(gate, request())) == ("protocol.run",)


@pytest.mark.parametrize("name", ["", "../north", "a" * 65, "a b", ".gate"])
def test_a_run_name_must_not_be_a_path(kit: Kit, name: str) -> None:
    gate = kit.open()
    assert rules_of(lambda: gate.admit_proposal(name, kit.proposal, b"frame")) == ("protocol.run",)


@pytest.mark.parametrize(
    ("asked", "rule"),
    [
        (request(payload=FAR), "incoming.prompt_change"),
        (request(rounds=10_000), "incoming.rounds"),
        (request(6), "protocol.round"),
        (request(0), "protocol.round"),
        (request(split="test"), "protocol.request"),
        (request(settings=None), "protocol.settings"),
        (request(settings=TrainingSettings(epochs=900)), "incoming.training.epochs"),
        (request(settings=TrainingSettings(head="fixed")), "incoming.heads"),
        (request(settings=TrainingSettings(proximal_mu=900)), "incoming.training.proximal_mu"),
        (request(correction=np.ones(6, np.float32)), "incoming.correction"),
        (request(wants_gradient=True), "outgoing.gradient"),
        (evaluation(split="train"), "incoming.splits"),
        (evaluation(wants_gradient=True), "protocol.request"),
        (evaluation(best_round=2), "protocol.round"),
        (request(best_round=1), "protocol.round"),
        (request(best_round=-1), "protocol.round"),
        (evaluation(correction=np.ones(6, np.float32)), "protocol.request"),
        (dataclasses.replace(evaluation(), settings=TrainingSettings()), "protocol.request"),
        (request(header=Header("other", 1, BACKBONE, LAYOUT.hash)), "protocol.run"),
        (request(header=Header(RUN, 1, "cd" * 32, LAYOUT.hash)), "protocol.backbone"),
        (request(header=Header(RUN, 1, BACKBONE, WITH_HEAD.hash)), "protocol.layout"),
        (request(header=Header(RUN, 1, BACKBONE, LAYOUT.hash, protocol=0)), "protocol.version"),
        (request(header=Header(RUN, 1, BACKBONE, LAYOUT.hash, code="0")), "incoming.code"),
    ],
)
def test_a_request_beyond_the_policy_is_refused_by_rule_and_the_site_continues(
    kit: Kit, asked: RoundRequest, rule: str | tuple[str, ...]
) -> None:
    gate, rules = kit.open(), (rule,) if isinstance(rule, str) else rule
    kit.join(gate)
    assert rules_of(lambda: kit.admit(gate, asked, frame=b"frame")) == rules
    assert (kit.entries()[-1].decision, kit.entries()[-1].rule) == ("refused", ", ".join(rules))
    kit.admit(gate, request())


@pytest.mark.parametrize("restart", [False, True])
def test_an_identical_request_may_be_repeated_and_no_other_request_may_go_back(kit: Kit, restart: bool) -> None:
    gate = kit.open()
    kit.join(gate)
    for number in (1, 3):
        kit.admit(gate, request(number))
    kit.admit(gate, evaluation(3))
    gate = kit.open() if restart else gate
    moved = INITIAL + np.float32(0.1)
    for other in (request(2), evaluation(1), request(3, payload=moved), evaluation(3, payload=moved)):
        assert rules_of(lambda other=other: kit.admit(gate, other)) == ("protocol.replay",)
    for again in (request(1), request(3), evaluation(3)):
        kit.admit(gate, again)
    kit.admit(gate, evaluation(3, "test"))


@pytest.mark.parametrize("restart", [False, True])
def test_the_prompts_of_the_chosen_round_are_one_more_request_and_it_is_in_the_ledger(kit: Kit, restart: bool) -> None:
    gate = kit.open()
    kit.join(gate)
    for number in (1, 2, 3):
        kit.admit(gate, request(number, best_round=max(0, number - 2)))
    kit.admit(gate, evaluation(3))
    chosen = evaluation(3, best_round=2, payload=INITIAL + np.float32(0.1))
    kit.admit(gate, chosen)
    assert kit.entries()[-1].split == "validation, prompts of round 2"
    gate = kit.open() if restart else gate
    kit.admit(gate, chosen)
    kit.admit(gate, evaluation(3))
    other = evaluation(3, best_round=2, payload=INITIAL + np.float32(0.2))
    assert rules_of(lambda: kit.admit(gate, other)) == ("protocol.replay",)


@pytest.mark.parametrize("restart", [False, True])
def test_prompts_may_move_by_the_bound_for_any_claimed_round(kit: Kit, restart: bool) -> None:
    gate = kit.open()
    kit.join(gate)
    kit.admit(gate, request(1))
    kit.admit(gate, request(2, payload=INITIAL + np.float32(0.9)))
    gate = kit.open() if restart else gate
    far = request(5, payload=INITIAL + np.float32(2.0))
    assert rules_of(lambda: kit.admit(gate, far)) == ("incoming.prompt_change",)
    kit.admit(gate, request(5, payload=INITIAL + np.float32(1.8)))


def test_prompts_are_compared_with_those_accepted_last_whichever_message_brought_them(kit: Kit) -> None:
    gate = kit.open()
    kit.join(gate)
    start, step = np.full(6, 1.375, np.float32), np.ones(6, np.float32)
    for asked in (
        request(1, payload=start),
        evaluation(1, payload=start + step),
        request(2, payload=start + 2 * step),
        evaluation(2, "test", payload=start + 3 * step),
    ):
        kit.admit(gate, asked)
    # A lost answer is requested again: prompts of old may be far, and do not become the last ones.
    kit.admit(gate, request(1, payload=start))
    kit.join(gate)
    assert rules_of(lambda: kit.admit(gate, request(3, payload=start + step))) == ("incoming.prompt_change",)
    kit.admit(gate, request(3, payload=start + 4 * step))


def test_what_a_policy_allows_besides_is_accepted_and_a_received_correction_is_in_the_ledger(kit: Kit) -> None:
    gate = kit.open(incoming__correction=True, incoming__splits=["train"], outgoing__gradient=True)
    kit.join(gate, proposal=agreed_on(kit.proposal, federation={"strategy": "scaffold"}))
    kit.admit(gate, request(correction=INITIAL, wants_gradient=True))
    assert kit.entries()[-1].tensors == (*LAYOUT.shapes, ("correction/sinks", (2, 3)))
    kit.admit(gate, evaluation(split="train"))
    assert kit.entries()[-1].tensors == LAYOUT.shapes


@pytest.mark.parametrize(("name", "numbers"), [("sinks", slice(0, 6)), ("tokens", slice(6, None))])
def test_a_jump_of_one_tensor_is_not_hidden_by_another_tensor(kit: Kit, name: str, numbers: slice) -> None:
    gate = kit.open()
    kit.join(gate, WITH_TOKENS)
    start = request(layout=WITH_TOKENS).payload
    jumped = start.copy()
    jumped[numbers] += np.float32(1.01)
    asked = request(layout=WITH_TOKENS, payload=jumped)
    assert rules_of(lambda: kit.admit(gate, asked, WITH_TOKENS)) == ("incoming.prompt_change",)
    assert f"{name} moved by 1.01" in kit.entries()[-1].reason
    kit.admit(gate, request(layout=WITH_TOKENS, payload=start + np.float32(0.99)), WITH_TOKENS)


def test_lost_prompts_fail_closed_until_the_run_is_proposed_again(kit: Kit) -> None:
    gate = kit.open()
    kit.join(gate)
    kit.admit(gate, request(1))
    for file in (kit.folder / "state" / ".gate").iterdir():
        file.write_bytes(file.read_bytes()[:-3])
    gate = kit.open()
    assert rules_of(lambda: kit.admit(gate, request(2))) == ("incoming.prompt_change",)
    kit.join(gate)
    kit.admit(gate, request(2))


def test_a_lost_answer_is_requested_again_also_if_the_prompts_are_lost(kit: Kit) -> None:
    gate = kit.open()
    kit.join(gate)
    kit.admit(gate, request(1))
    for file in (kit.folder / "state" / ".gate").iterdir():
        file.unlink()
    gate = kit.open()
    kit.admit(gate, request(1))
    kit.admit(gate, request(2))


NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False)
ASKED = st.fixed_dictionaries(
    {},
    optional={
        "phase": st.sampled_from(["train", "evaluate"]),
        "rounds": st.integers(-5, 20_000),
        "payload": st.lists(NUMBERS, min_size=6, max_size=6).map(lambda values: np.array(values, np.float32)),
        "split": st.sampled_from(SPLITS),
        "settings": st.one_of(
            st.none(),
            st.fixed_dictionaries(
                {}, optional={"epochs": st.integers(1, 1000), "batch_size": st.integers(1, 4096)}
            ).map(TrainingSettings.model_validate),
        ),
        "correction": st.one_of(st.none(), st.just(np.ones(6, np.float32))),
        "wants_gradient": st.booleans(),
        "best_round": st.integers(-2, 9),
        "header": st.builds(
            Header,
            st.sampled_from([RUN, "other", "../x"]),
            st.integers(-2, 9),
            st.sampled_from([BACKBONE, "x"]),
            st.sampled_from([LAYOUT.hash, "x"]),
        ),
    },
)


@FUZZED
@given(sequence=st.lists(ASKED, min_size=1, max_size=4))
def test_the_gate_accepts_only_requests_that_the_policy_allows(kit: Kit, sequence: list[dict[str, Any]]) -> None:
    gate, memory = fuzzed_gate(kit, STRICT)
    accepted: dict[RequestKey, bytes] = {}
    for changes in sequence:
        asked = request(**changes)
        key, frame = request_key(asked), encode_frame_or_none(asked)
        try:
            kit.admit(gate, asked, frame=frame)
        except MessageRefusedError as refusal:
            assert memory.decisions[-1] == ("in", "refused")
            assert isinstance(refusal, PolicyViolationError) or "agreed on" in str(refusal)
            continue
        assert memory.decisions[-1] == ("in", "passed")
        # A repetition bit for bit, or a new request for a round that is not over.
        assert accepted.get(key, frame) == frame
        assert key in accepted or key[0] >= max((number for number, *_ in accepted), default=0)
        accepted[key] = frame
        assert asked.header == Header(RUN, asked.header.round, BACKBONE, LAYOUT.hash)
        assert 1 <= asked.header.round <= asked.rounds == kit.agreed.federation.rounds
        assert asked.correction is None
        assert not asked.wants_gradient
        assert 0 <= asked.best_round <= asked.header.round - (asked.phase == "train")
        assert asked.split == "train" if asked.phase == "train" else asked.split in ("validation", "test")
        if asked.phase == "train":
            assert asked.settings == kit.agreed.training


def encode_frame_or_none(asked: RoundRequest) -> bytes:
    try:
        return encode_frame(asked)
    except MessageRefusedError:
        return b"unspelled"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rounds": 6}, "agreed on for 5 rounds, but 6"),
        ({"settings": TrainingSettings(epochs=7)}, "epochs differ"),
        (
            {"settings": TrainingSettings(optimizer="sgd", prompt_lr=0.2)},
            "optimizer, prompt_lr differ",
        ),
        ({"settings": TrainingSettings(proximal_mu=0.5)}, "proximal_mu differ"),
        ({"wants_gradient": True}, "agreed on with fedavg, but a gradient"),
        ({"correction": INITIAL}, "agreed on with fedavg, but the request has a linear term"),
    ],
)
def test_a_request_that_was_not_agreed_on_is_recorded_as_refused_and_the_agreed_one_passes(
    kit: Kit, change: dict[str, Any], says: str
) -> None:
    gate = kit.open(incoming__correction=True, outgoing__gradient=True)
    kit.join(gate)
    moved = INITIAL + np.float32(0.9)
    with pytest.raises(MessageRefusedError, match=says):
        kit.admit(gate, request(payload=moved, **change))
    entry = kit.entries()[-1]
    assert (entry.decision, entry.rule) == ("refused", "protocol.agreement")
    assert says in entry.reason
    # Neither a replay of what was refused, nor compared with its prompts.
    kit.admit(gate, request(payload=INITIAL - np.float32(0.9)))
    assert kit.entries()[-1].decision == "passed"
    assert kit.is_sound()
