"""The gate: nothing outside the policy leaves or comes in, whatever is asked, and everything is in the ledger."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client import gate as gate_module
from client.audit import examine
from client.budget import BudgetLedger
from client.gate import LEDGER_FILE, SITE_KEY, Gate, check_gate, open_gate
from client.ledger import tip_path
from client.ledger_entry import Entry, parse_entry
from client.policy import Policy
from client.rules import RulesBrokenError
from ept_fed.config import Experiment, TrainingSettings
from ept_fed.methods import METHODS
from ept_fed.problems import InputRefusedError
from ept_fed.protocol.frames import Introduce, encode_frame
from ept_fed.protocol.layout import PayloadLayout
from ept_fed.protocol.messages import (
    EVALUATE_METRICS,
    SPLITS,
    TRAIN_METRICS,
    Header,
    MessageRefusedError,
    RoundReply,
    RoundRequest,
    metric_keys,
)
from ept_fed.protocol.proposal import Proposal, SiteIntroduction, propose
from ept_fed.site_settings import SiteSettings

RUN, BACKBONE = "run-a", "ab" * 32
LAYOUT = PayloadLayout((("sinks", (2, 3)),), ("embedding concat", "layer 0", "layer 1"))
WITH_HEAD = PayloadLayout(
    (("sinks", (2, 3)), ("head.weight", (2, 4)), ("head.bias", (2,))),
    ("embedding concat", "layer 0", "layer 1", "class a", "class b"),
)
COUNTS: Mapping[Any, int] = {"train": 40, "validation": 20, "test": 5}
INITIAL = np.linspace(0, 1, 6, dtype=np.float32)


class Kit:
    """A site's folder, and its gate under a policy."""

    def __init__(self, folder: Path, proposal: Proposal) -> None:
        self.folder, self.proposal = folder, proposal
        self.settings = SiteSettings.model_validate(
            {
                "site": "north",
                "data": {"source": "phantoms"},
                "worker": {"state": folder / "state", "socket": folder / "worker.sock"},
                "policy": folder / "policy.yaml",
            }
        )
        key = ec.generate_private_key(ec.SECP384R1())
        (folder / SITE_KEY).parent.mkdir()
        (folder / SITE_KEY).write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        (folder / SITE_KEY).chmod(0o600)
        self.key = key.public_key()
        self.gates: list[Gate] = []

    def open(self, **rules: Any) -> Gate:
        """Open the gate anew, as a worker that restarts does; rules are `outgoing__head=True`."""
        self.close()
        document: dict[str, Any] = {"schema": 1, "outgoing": {}, "incoming": {"backbone": "first"}}
        for name, value in rules.items():
            section, _, rule = name.partition("__")
            document[section][rule] = value
        self.settings.policy.write_text(Policy.model_validate(document).model_dump_json(by_alias=True))
        self.gates.append(open_gate(self.settings, self.folder))
        return self.gates[-1]

    def close(self) -> None:
        while self.gates:
            self.gates.pop().close()

    def join(self, gate: Gate, layout: PayloadLayout = LAYOUT, proposal: Proposal | None = None) -> None:
        """Let a run be proposed and answered."""
        wanted = proposal or self.proposal
        gate.admit_proposal(RUN, wanted, encode_frame(Introduce(RUN, wanted)))
        met = introduction(wanted, layout=layout, initial=np.resize(INITIAL, layout.size))
        gate.release_introduction(RUN, met, encode_frame(met), counts=COUNTS)

    def entries(self) -> list[Entry]:
        lines = (self.folder / "state" / LEDGER_FILE).read_bytes().splitlines()
        return [entry for line in lines if (entry := parse_entry(line)) is not None]

    def is_sound(self) -> bool:
        path = self.folder / "state" / LEDGER_FILE
        return examine(path.read_bytes(), tip_path(path).read_bytes(), self.key, every_signature=True).sound


@pytest.fixture
def kit(tmp_path: Path, micro: Callable[..., Experiment]) -> Iterator[Kit]:
    made = Kit(tmp_path, propose(micro("data.classes=[a, b]")))
    yield made
    made.close()


def introduction(proposal: Proposal, **changes: Any) -> SiteIntroduction:
    whole = SiteIntroduction("north", RUN, proposal.digest, BACKBONE, LAYOUT, INITIAL, COUNTS["train"])
    return dataclasses.replace(whole, **changes)


def request(round_number: int = 1, layout: PayloadLayout = LAYOUT, **changes: Any) -> RoundRequest:
    header = Header(RUN, round_number, BACKBONE, layout.hash)
    whole = RoundRequest(
        header, "train", 5, np.resize(INITIAL, layout.size), "train", TrainingSettings().model_dump_json()
    )
    return dataclasses.replace(whole, **changes)


def evaluation(round_number: int = 1, split: str = "validation", **changes: Any) -> RoundRequest:
    return request(round_number, phase="evaluate", split=split, settings="", **changes)


def answer(asked: RoundRequest, **changes: Any) -> RoundReply:
    metrics = dict.fromkeys(metric_keys(asked.phase), 1.0)
    trained = asked.payload + np.float32(0.5) if asked.phase == "train" else None
    whole = RoundReply(asked.header, asked.phase, trained, COUNTS[asked.split], metrics)
    return dataclasses.replace(whole, **changes)


def admit(gate: Gate, asked: RoundRequest, layout: PayloadLayout = LAYOUT) -> None:
    gate.admit(asked, layout, encode_frame(asked))


def rules_of(act: Callable[[], object]) -> tuple[str, ...]:
    """Return the rules that an act breaks."""
    with pytest.raises(RulesBrokenError) as refusal:
        act()
    return refusal.value.rules


def test_a_run_passes_and_every_message_is_in_the_ledger(kit: Kit) -> None:
    gate = kit.open()
    kit.join(gate)
    for number in (1, 2):
        asked = request(number)
        admit(gate, asked)
        left = gate.release(asked, answer(asked), LAYOUT)
        left.check(asked.header, LAYOUT)
        assert np.array_equal(left.payload, answer(asked).payload)
    admit(gate, evaluation(2))
    gate.release(evaluation(2), answer(evaluation(2)), LAYOUT)
    entries = kit.entries()
    assert [(entry.direction, entry.kind, entry.round) for entry in entries] == [
        ("site", "opened", None),
        ("in", "introduce", None),
        ("out", "introduction", None),
        *[(direction, "train", number) for number in (1, 2) for direction in ("in", "out")],
        ("in", "evaluate", 2),
        ("out", "evaluate", 2),
    ]
    assert entries[4].tensors == LAYOUT.shapes
    assert entries[4].bytes == len(encode_frame(left_of(gate, kit)))
    assert kit.is_sound()


def left_of(gate: Gate, kit: Kit) -> RoundReply:
    asked = request(1)
    admit(gate, asked)
    return gate.release(asked, answer(asked), LAYOUT)


def test_without_a_policy_nothing_leaves_and_the_site_learns_what_to_pin(kit: Kit, caplog: Any) -> None:
    kit.close()
    gate = open_gate(kit.settings, kit.folder)
    kit.gates.append(gate)
    assert rules_of(lambda: kit.join(gate)) == ("incoming.backbone",)
    assert BACKBONE in caplog.text
    assert BACKBONE in kit.entries()[-1].reason


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"model": {"method": "linear"}}, "incoming.methods"),
        ({"model": {"backbone": "hf-hub:someone/vit"}}, "incoming.backbone"),
        ({"model": {"tokens": 21}}, "incoming.tokens"),
        ({"model": {"initial_sink": 10.0}}, "incoming.initial_sink"),
        ({"model": {"prompt_length": 1001}}, "incoming.prompt_length"),
        ({"model": {"image_size": 4096}}, "incoming.image_size"),
        ({"federation": {"share": "prompts+head"}}, "incoming.share"),
        ({"federation": {"payload": "raw"}}, "incoming.payload"),
        ({"federation": {"rounds": 10_000}}, "incoming.rounds"),
        ({"personalisation": {"fine_tune_epochs": 999}}, "incoming.fine_tune_epochs"),
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


def test_all_rules_that_a_proposal_breaks_are_named_together_and_no_value_leaves(kit: Kit) -> None:
    gate = kit.open()
    document = kit.proposal.model_dump()
    document["training"] |= {"epochs": 999, "batch_size": 1}
    with pytest.raises(RulesBrokenError) as refusal:
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


@pytest.mark.parametrize("name", ["", "../north", "a" * 65, "a b", ".gate"])
def test_a_runs_name_is_no_path(kit: Kit, name: str) -> None:
    gate = kit.open()
    assert rules_of(lambda: gate.admit_proposal(name, kit.proposal, b"frame")) == ("protocol.run",)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"layout": WITH_HEAD, "initial": np.zeros(16, np.float32)}, "outgoing.head"),
        ({"layout": PayloadLayout((("prompts", (2, 3, 1)),))}, "outgoing.tensors"),
        ({"layout": PayloadLayout(LAYOUT.shapes, ("patient Jane Roe",))}, "protocol.layout"),
        ({"layout": PayloadLayout(LAYOUT.shapes, ("class carcinoma of Jane Roe",))}, "protocol.layout"),
        ({"initial": np.full(6, np.nan, np.float32)}, "protocol.payload"),
        ({"initial": np.zeros(6)}, "protocol.payload"),
        ({"examples": 9}, "outgoing.fewest_training_images"),
        ({"site": "Jane Roe"}, "protocol.site"),
        ({"run": "other"}, "protocol.run"),
        ({"proposal": "00" * 32}, "protocol.run"),
        ({"code": "0"}, "protocol.version"),
    ],
)
def test_an_introduction_outside_the_policy_does_not_leave(kit: Kit, change: dict[str, Any], rule: str) -> None:
    gate = kit.open()
    gate.admit_proposal(RUN, kit.proposal, b"frame")
    met = dataclasses.replace(introduction(kit.proposal), **change)
    assert rules_of(lambda: gate.release_introduction(RUN, met, b"frame", counts=COUNTS)) == (rule,)
    assert rules_of(lambda: admit(gate, request())) == ("protocol.run",)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_what_any_method_says_of_its_layout_may_leave(kit: Kit, method: str) -> None:
    info = METHODS[method]
    said = (f"method {method}", *(f"{name} {option.default:g}" for name, option in info.options.items()))
    gate = kit.open()
    gate.admit_proposal(RUN, kit.proposal, b"frame")
    met = introduction(kit.proposal, layout=PayloadLayout(LAYOUT.shapes, (*said, "class a")))
    gate.release_introduction(RUN, met, encode_frame(met), counts=COUNTS)


def test_the_first_backbone_is_kept_over_restarts_and_a_list_overrules_it(kit: Kit) -> None:
    kit.join(kit.open())
    gate = kit.open()
    gate.admit_proposal("run-b", kit.proposal, b"frame")
    other = introduction(kit.proposal, run="run-b", backbone_digest="cd" * 32)
    assert rules_of(lambda: gate.release_introduction("run-b", other, b"frame", counts=COUNTS)) == (
        "incoming.backbone",
    )
    gate = kit.open(incoming__backbone=["cd" * 32])
    gate.admit_proposal("run-b", kit.proposal, b"frame")
    gate.release_introduction("run-b", other, b"frame", counts=COUNTS)


FAR = INITIAL + np.float32(2.5)
JSON = TrainingSettings().model_dump()


@pytest.mark.parametrize(
    ("asked", "rule"),
    [
        (request(payload=FAR), "incoming.prompt_change"),
        (request(payload=np.full(6, np.inf, np.float32)), "protocol.payload"),
        (request(payload=INITIAL.astype(np.float64)), "protocol.payload"),
        (request(payload=INITIAL[:5]), "protocol.payload"),
        (request(rounds=10_000), "incoming.rounds"),
        (request(6), "protocol.round"),
        (request(0), "protocol.round"),
        (request(settings="{}", split="test"), "protocol.request"),
        (request(settings="{"), "protocol.settings"),
        (request(settings=TrainingSettings(epochs=900).model_dump_json()), "incoming.training.epochs"),
        (request(settings=TrainingSettings(proximal_mu=900).model_dump_json()), "incoming.training.proximal_mu"),
        (request(correction=np.ones(6, np.float32)), "incoming.correction"),
        (request(wants_gradient=True), "outgoing.gradient"),
        (evaluation(split="train"), "incoming.splits"),
        (evaluation(wants_gradient=True), "protocol.request"),
        (request(header=Header("other", 1, BACKBONE, LAYOUT.hash)), "protocol.run"),
        (request(header=Header(RUN, 1, "cd" * 32, LAYOUT.hash)), "protocol.backbone"),
        (request(header=Header(RUN, 1, BACKBONE, WITH_HEAD.hash)), "protocol.layout"),
        (request(header=Header(RUN, 1, BACKBONE, LAYOUT.hash, protocol=0)), "protocol.version"),
        (request(header=Header(RUN, 1, BACKBONE, LAYOUT.hash, code="0")), "incoming.code"),
    ],
)
def test_a_request_beyond_the_policy_is_refused_by_rule_and_the_site_goes_on(
    kit: Kit, asked: RoundRequest, rule: str
) -> None:
    gate = kit.open()
    kit.join(gate)
    assert rules_of(lambda: gate.admit(asked, LAYOUT, b"frame")) == (rule,)
    assert (kit.entries()[-1].decision, kit.entries()[-1].rule) == ("refused", rule)
    admit(gate, request())


@pytest.mark.parametrize("restart", [False, True])
def test_a_server_cannot_go_back_or_ask_twice_and_may_ask_again_bit_for_bit(kit: Kit, restart: bool) -> None:
    gate = kit.open()
    kit.join(gate)
    for number in (1, 3):
        admit(gate, request(number))
    gate = kit.open() if restart else gate
    admit(gate, request(1))
    admit(gate, request(3))
    assert rules_of(lambda: admit(gate, request(2))) == ("protocol.replay",)
    other = request(3, payload=INITIAL + np.float32(0.1))
    assert rules_of(lambda: admit(gate, other)) == ("protocol.replay",)


@pytest.mark.parametrize("restart", [False, True])
def test_prompts_may_move_by_the_bound_whatever_round_a_server_claims(kit: Kit, restart: bool) -> None:
    gate = kit.open()
    kit.join(gate)
    admit(gate, request(1))
    admit(gate, request(2, payload=INITIAL + np.float32(0.9)))
    gate = kit.open() if restart else gate
    far = request(5, payload=INITIAL + np.float32(2.0))
    assert rules_of(lambda: admit(gate, far)) == ("incoming.prompt_change",)
    admit(gate, request(5, payload=INITIAL + np.float32(1.8)))


def test_lost_prompts_fail_closed_until_the_run_is_proposed_again(kit: Kit) -> None:
    gate = kit.open()
    kit.join(gate)
    admit(gate, request(1))
    for file in (kit.folder / "state" / ".gate").iterdir():
        file.write_bytes(file.read_bytes()[:-3])
    gate = kit.open()
    assert rules_of(lambda: admit(gate, request(2))) == ("incoming.prompt_change",)
    kit.join(gate)
    admit(gate, request(2))


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
        ({"examples": 3}, "outgoing.fewest_training_images"),
        ({"examples": True}, "protocol.reply"),
        ({"metrics": {**dict.fromkeys(TRAIN_METRICS, 1.0), "patient": 1.0}}, "outgoing.metrics"),
        ({"metrics": dict.fromkeys(TRAIN_METRICS, "Jane Roe")}, "outgoing.metrics"),
        ({"metrics": dict.fromkeys(TRAIN_METRICS, math.inf)}, "protocol.reply"),
        ({"header": Header("Jane Roe", 1, BACKBONE, LAYOUT.hash)}, "protocol.reply"),
        ({"phase": "evaluate"}, "protocol.reply"),
    ],
)
def test_a_reply_outside_the_policy_does_not_leave(kit: Kit, change: dict[str, Any], rule: str) -> None:
    gate = kit.open()
    kit.join(gate)
    asked = request()
    admit(gate, asked)
    assert rules_of(lambda: gate.release(asked, answer(asked, **change), LAYOUT)) == (rule,)
    assert (kit.entries()[-1].direction, kit.entries()[-1].decision) == ("out", "refused")
    assert gate.release(asked, answer(asked), LAYOUT).payload is not None


def test_a_payload_of_the_right_size_but_another_layout_does_not_leave(kit: Kit) -> None:
    gate = kit.open()
    kit.join(gate)
    asked = request()
    admit(gate, asked)
    other = PayloadLayout((("sinks", (3, 2)),), LAYOUT.meaning)
    assert rules_of(lambda: gate.release(asked, answer(asked), other)) == ("protocol.layout",)


def test_a_head_leaves_only_if_both_rules_say_so(kit: Kit) -> None:
    document = kit.proposal.model_dump()
    document["federation"] |= {"share": "prompts+head"}
    wanted = Proposal.model_validate(document)
    assert rules_of(lambda: kit.join(kit.open(), WITH_HEAD, wanted)) == ("incoming.share",)
    shared = {"incoming__share": ["prompts+head"]}
    assert rules_of(lambda: kit.join(kit.open(**shared), WITH_HEAD, wanted)) == ("outgoing.head",)
    gate = kit.open(**shared, outgoing__head=True)
    kit.join(gate, WITH_HEAD, wanted)
    asked = request(layout=WITH_HEAD)
    admit(gate, asked, WITH_HEAD)
    gate.release(asked, answer(asked), WITH_HEAD)
    assert "head.weight" in {name for name, _ in kit.entries()[-1].tensors}
    stricter = kit.open(**shared)
    assert "outgoing.head" in rules_of(lambda: stricter.release(asked, answer(asked), WITH_HEAD))


def test_a_gradient_leaves_only_if_the_policy_says_so(kit: Kit) -> None:
    gate = kit.open(outgoing__gradient=True)
    kit.join(gate)
    asked = request(wants_gradient=True)
    admit(gate, asked)
    left = gate.release(asked, answer(asked, gradient=INITIAL), LAYOUT)
    assert np.array_equal(left.gradient, INITIAL)
    assert ("gradient/sinks", (2, 3)) in kit.entries()[-1].tensors


def test_clipping_scales_the_update_to_the_bound_and_says_so(kit: Kit) -> None:
    gate = kit.open(outgoing__update={"bound": 0.25, "above": "clip"})
    kit.join(gate)
    asked = request()
    admit(gate, asked)
    left = gate.release(asked, answer(asked), LAYOUT)
    np.testing.assert_allclose(left.payload - asked.payload, 0.25, rtol=1e-5)
    entry = kit.entries()[-1]
    assert (entry.decision, entry.rule) == ("clipped", "outgoing.update")
    assert entry.totals.sent.messages == 2


def test_metrics_over_too_few_images_and_unlisted_ones_are_undefined_and_the_rest_is_rounded(kit: Kit) -> None:
    gate = kit.open(outgoing__metrics=["auc", "accuracy"], outgoing__digits=2)
    kit.join(gate)
    asked = evaluation(split="test")
    admit(gate, asked)
    left = gate.release(asked, answer(asked), LAYOUT)
    assert left.examples == 0
    assert all(math.isnan(value) for value in left.metrics.values())
    asked = evaluation()
    admit(gate, asked)
    metrics = {**dict.fromkeys(EVALUATE_METRICS, 0.98765), "classes_present": 2.0}
    left = gate.release(asked, answer(asked, metrics=metrics), LAYOUT)
    assert left.metrics["auc"] == left.metrics["accuracy"] == 0.99
    assert {name for name, value in left.metrics.items() if not math.isnan(value)} == {"auc", "accuracy"}
    assert kit.entries()[-1].metrics == ("auc", "accuracy")


@pytest.mark.parametrize("restart", [False, True])
def test_validation_metrics_of_a_train_reply_count_validation_images(kit: Kit, restart: bool) -> None:
    gate = kit.open(outgoing__fewest_images=21)
    kit.join(gate)
    gate = kit.open(outgoing__fewest_images=21) if restart else gate
    asked = request()
    admit(gate, asked)
    left = gate.release(asked, answer(asked), LAYOUT)
    assert math.isnan(left.metrics["validation_auc"])
    assert (left.metrics["loss"], left.metrics["steps"]) == (1.0, 1.0)
    left.check(asked.header, LAYOUT)


def test_what_cannot_be_recorded_does_not_pass(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = kit.open()
    kit.join(gate)
    asked = request()
    admit(gate, asked)

    def fail(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("client.ledger.os.fsync", fail)
    for act in (lambda: admit(gate, request(2)), lambda: gate.release(asked, answer(asked), LAYOUT)):
        with pytest.raises(OSError, match="No space left"):
            act()
    monkeypatch.undo()
    admit(gate, request(2))
    assert kit.is_sound()


def test_what_the_worker_refuses_is_recorded_as_text_of_one_line(kit: Kit) -> None:
    kit.open().refused("in", "unreadable\n", "a frame\x00cannot be read", b"junk")
    entry = kit.entries()[-1]
    assert (entry.decision, entry.kind, entry.bytes) == ("refused", "unreadable ", 4)
    assert entry.reason.isprintable()


@pytest.mark.parametrize("spoil", ["key", "open key", "ledger", "policy", "second"])
def test_a_gate_that_cannot_be_sure_of_itself_does_not_open(kit: Kit, spoil: str) -> None:
    kit.join(kit.open())
    if spoil != "second":
        kit.close()
    if spoil == "key":
        (kit.folder / SITE_KEY).write_text("no key")
    elif spoil == "open key":
        (kit.folder / SITE_KEY).chmod(0o644)
    elif spoil == "ledger":
        ledger = kit.folder / "state" / LEDGER_FILE
        ledger.write_bytes(ledger.read_bytes().replace(b'"images":40', b'"images":41'))
    elif spoil == "policy":
        kit.settings.policy.write_text("schema: 1\nincoming: {rouns: [1, 2]}")
    with pytest.raises(InputRefusedError):
        open_gate(kit.settings, kit.folder)
    if spoil == "second":
        check_gate(kit.settings, kit.folder)
    else:
        with pytest.raises(InputRefusedError):
            check_gate(kit.settings, kit.folder)


def test_checking_a_gate_begins_no_ledger(kit: Kit) -> None:
    check_gate(kit.settings, kit.folder)
    assert not kit.settings.worker.state.exists()


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


class Memory:
    """In the place of a disk: the fuzzing is about what passes, and the ledger's own tests are about the disk."""

    def __init__(self) -> None:
        self.decisions: list[tuple[str, str]] = []
        self.history: list[Entry] = []

    def append(self, record: Any) -> None:
        self.decisions.append((record.direction, record.decision))


def fuzzed_gate(kit: Kit, policy: Policy) -> tuple[Gate, Memory]:
    memory = Memory()
    budget = BudgetLedger(kit.folder / "budget.jsonl")
    gate = Gate(policy, memory, gate_module.PromptStore(kit.folder / "prompts"), budget, site="north")  # type: ignore[arg-type]
    kit.join(gate)
    return gate, memory


STRICT = Policy.model_validate({"schema": 1, "incoming": {"backbone": "first"}})
FUZZED = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZED
@given(changes=ANYTHING)
def test_whatever_a_reply_holds_nothing_leaves_but_what_the_policy_allows(kit: Kit, changes: dict[str, Any]) -> None:
    gate, memory = fuzzed_gate(kit, STRICT)
    asked = request()
    admit(gate, asked)
    try:
        left = gate.release(asked, answer(asked, **changes), LAYOUT)
    except MessageRefusedError as refusal:
        assert memory.decisions[-1] == ("out", "refused")
        assert set(str(refusal).removeprefix("the site's gate refuses it: ").split(", ")) <= {
            "outgoing.update",
            "outgoing.metrics",
            "outgoing.fewest_training_images",
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


ASKED = st.fixed_dictionaries(
    {},
    optional={
        "phase": st.sampled_from(["train", "evaluate"]),
        "rounds": st.integers(-5, 20_000),
        "payload": st.lists(st.floats(width=32), min_size=5, max_size=7).map(lambda v: np.array(v, np.float32)),
        "split": st.sampled_from(SPLITS),
        "settings": st.one_of(
            st.just(""),
            st.text(max_size=30),
            st.fixed_dictionaries(
                {}, optional={"epochs": st.integers(1, 1000), "batch_size": st.integers(1, 4096)}
            ).map(lambda values: TrainingSettings.model_validate(values).model_dump_json()),
        ),
        "correction": st.one_of(st.none(), st.just(np.ones(6, np.float32))),
        "wants_gradient": st.booleans(),
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
def test_whatever_a_server_asks_only_what_the_policy_grants_comes_in(kit: Kit, sequence: list[dict[str, Any]]) -> None:
    gate, memory = fuzzed_gate(kit, STRICT)
    highest = 0
    for changes in sequence:
        asked = request(**changes)
        try:
            gate.admit(asked, LAYOUT, encode_frame_or_none(asked))
        except MessageRefusedError as refusal:
            assert memory.decisions[-1] == ("in", "refused")
            assert str(refusal).startswith("the site's gate refuses it: ")
            continue
        assert memory.decisions[-1] == ("in", "passed")
        assert asked.header.round >= highest or len(sequence) > 1
        highest = max(highest, asked.header.round)
        assert asked.header == Header(RUN, asked.header.round, BACKBONE, LAYOUT.hash)
        assert 1 <= asked.header.round <= asked.rounds <= 200
        assert np.isfinite(asked.payload).all()
        assert asked.correction is None
        assert not asked.wants_gradient
        assert asked.split == "train" if asked.phase == "train" else asked.split in ("validation", "test")
        if asked.phase == "train":
            training = TrainingSettings.model_validate_json(asked.settings)
            assert training.epochs <= 20
            assert 4 <= training.batch_size <= 256


def encode_frame_or_none(asked: RoundRequest) -> bytes:
    try:
        return encode_frame(asked)
    except MessageRefusedError:
        return b"unspelled"
