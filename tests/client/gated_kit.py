"""Shared by the gate's tests: a site's folder, its gate, and messages that the strictest policy accepts."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck

from client.gate.gate import Gate
from client.gate.open_gate import LEDGER_FILE, SITE_KEY, open_gate
from client.gate.policy import Policy
from client.gate.privacy_budget import BudgetLedger
from client.gate.run_history import PromptStore
from client.gate.violations import PolicyViolationError
from client.ledger.entry import Entry, parse_entry
from client.ledger.ledger import tip_path
from client.ledger.verify import examine
from ept_fed.config.experiment import TrainingSettings
from ept_fed.protocol.frames import Introduce, encode_frame
from ept_fed.protocol.layout import PayloadLayout
from ept_fed.protocol.messages import (
    Header,
    RoundReply,
    RoundRequest,
    metric_keys,
)
from ept_fed.protocol.proposal import Proposal, SiteIntroduction
from ept_fed.training.class_statistics import shape_statistics
from ept_fed.validation.load_site import SiteSettings
from tests.effort import examples

RUN, BACKBONE = "run-a", "ab" * 32
LAYOUT = PayloadLayout((("sinks", (2, 3)),), ("embedding concat", "layer 0", "layer 1"))
WITH_HEAD = PayloadLayout(
    (("sinks", (2, 3)), ("head.weight", (2, 4)), ("head.bias", (2,))),
    ("embedding concat", "layer 0", "layer 1", "class a", "class b"),
)
WITH_TOKENS = PayloadLayout((("sinks", (2, 3)), ("tokens", (2, 1, 60))), LAYOUT.meaning)
WITH_MEANS = PayloadLayout(
    (*LAYOUT.shapes, *shape_statistics("means", classes=2, width=4).items()), (*LAYOUT.meaning, "class a", "class b")
)
COUNTS: Mapping[Any, int] = {"train": 40, "validation": 20, "test": 5}
INITIAL = np.linspace(0, 1, 6, dtype=np.float32)


class Kit:
    """A site's folder and its gate with a policy."""

    def __init__(self, folder: Path, proposal: Proposal) -> None:
        # What `request` asks for.
        federation = proposal.federation.model_copy(update={"rounds": 5})
        self.proposal = proposal.model_copy(update={"federation": federation, "training": TrainingSettings()})
        self.folder, self.agreed = folder, self.proposal
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
        """Reopen the gate, as a restarted worker does. Rules are given as `outgoing__head=True`."""
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
        """Pass the proposal of a run and the site's introduction through the gate."""
        wanted = proposal or self.proposal
        self.agreed = wanted
        gate.admit_proposal(RUN, wanted, encode_frame(Introduce(RUN, wanted)))
        start = np.where(layout.trained, np.resize(INITIAL, layout.size), np.float32(0))
        met = introduction(wanted, layout=layout, initial=start)
        gate.release_introduction(RUN, met, encode_frame(met), counts=COUNTS)

    def admit(
        self, gate: Gate, asked: RoundRequest, layout: PayloadLayout = LAYOUT, frame: bytes | None = None
    ) -> None:
        """Pass a request of the most recently joined run to the gate."""
        gate.admit(asked, self.agreed, layout, encode_frame(asked) if frame is None else frame)

    def entries(self) -> list[Entry]:
        lines = (self.folder / "state" / LEDGER_FILE).read_bytes().splitlines()
        return [entry for line in lines if (entry := parse_entry(line)) is not None]

    def is_sound(self) -> bool:
        path = self.folder / "state" / LEDGER_FILE
        return examine(path.read_bytes(), tip_path(path).read_bytes(), self.key, every_signature=True).sound


def agreed_on(proposal: Proposal, **sections: Mapping[str, Any]) -> Proposal:
    """Return a proposal with other values in some sections, such as `training={"head": "lda"}`."""
    document = proposal.model_dump()
    for section, values in sections.items():
        document[section] |= values
    return Proposal.model_validate(document)


def introduction(proposal: Proposal, **changes: Any) -> SiteIntroduction:
    whole = SiteIntroduction("north", RUN, proposal.digest, BACKBONE, LAYOUT, INITIAL, COUNTS["train"])
    return dataclasses.replace(whole, **changes)


def request(round_number: int = 1, layout: PayloadLayout = LAYOUT, **changes: Any) -> RoundRequest:
    header = Header(RUN, round_number, BACKBONE, layout.hash)
    whole = RoundRequest(header, "train", 5, np.resize(INITIAL, layout.size), "train", TrainingSettings())
    return dataclasses.replace(whole, **changes)


def evaluation(round_number: int = 1, split: str = "validation", **changes: Any) -> RoundRequest:
    return request(round_number, phase="evaluate", split=split, settings=None, **changes)


def answer(asked: RoundRequest, **changes: Any) -> RoundReply:
    metrics = dict.fromkeys(metric_keys(asked.phase), 1.0)
    trained = asked.payload + np.float32(0.5) if asked.phase == "train" else None
    whole = RoundReply(asked.header, asked.phase, trained, COUNTS[asked.split], metrics)
    return dataclasses.replace(whole, **changes)


def rules_of(act: Callable[[], object]) -> tuple[str, ...]:
    """Return the policy rules that a call violates."""
    with pytest.raises(PolicyViolationError) as refusal:
        act()
    return refusal.value.rules


class Memory:
    """Ledger in memory: fuzzing tests which messages pass, and the ledger's own tests cover the disk."""

    def __init__(self) -> None:
        self.decisions: list[tuple[str, str]] = []
        self.history: list[Entry] = []

    def append(self, record: Any) -> None:
        self.decisions.append((record.direction, record.decision))


def fuzzed_gate(kit: Kit, policy: Policy) -> tuple[Gate, Memory]:
    memory = Memory()
    budget = BudgetLedger(kit.folder / "budget.jsonl")
    gate = Gate(policy, memory, PromptStore(kit.folder / "prompts"), budget, site="north")  # type: ignore[arg-type]
    kit.join(gate)
    return gate, memory


STRICT = Policy.model_validate({"schema": 1, "incoming": {"backbone": "first"}})
FUZZED = examples(50, suppress=(HealthCheck.function_scoped_fixture,))
