"""A worker with its gate, without a socket, for tests of what it answers."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from client.gate.gate import Gate
from client.gate.open_gate import LEDGER_FILE, open_gate
from client.worker.worker import Worker
from ept_fed.pki.keys import new_key, serialize_pkcs8
from ept_fed.protocol.frames import Introduce, decode_frame, encode_frame
from ept_fed.protocol.messages import Header, RoundRequest
from ept_fed.protocol.proposal import Proposal, SiteIntroduction
from ept_fed.validation.load_site import load_site_settings

POLICY: Mapping[str, Any] = {
    "schema": 1,
    "outgoing": {"min_images": 2, "min_training_images": 2},
    "incoming": {"backbone": "first", "training": {"epochs": [1, 2]}},
}


@dataclasses.dataclass
class Gated:
    """A worker that has agreed to a run."""

    worker: Worker
    gate: Gate
    ledger: Path
    proposal: Proposal
    met: SiteIntroduction

    def request(self, **changes: Any) -> RoundRequest:
        header = Header(self.met.run, 1, self.met.backbone_digest, self.met.layout.hash)
        training = self.proposal.training
        return dataclasses.replace(RoundRequest(header, "train", 2, self.met.initial, "train", training), **changes)


def join_run(kit: Path, proposal: Proposal, *, run: str = "run-a", policy: Mapping[str, Any] = POLICY) -> Gated:
    """Start a worker in a kit and make it agree to a run."""
    (kit / "policy.yaml").write_text(yaml.safe_dump(policy))
    (kit / "keys").mkdir()
    (kit / "keys" / "site.key").write_bytes(serialize_pkcs8(new_key()))
    (kit / "keys" / "site.key").chmod(0o600)
    found = load_site_settings(kit / "site.yaml")
    gate = open_gate(found, kit)
    worker = Worker(found, gate)
    met = decode_frame(worker.answer(encode_frame(Introduce(run, proposal))))
    assert isinstance(met, SiteIntroduction), met
    return Gated(worker, gate, found.worker.state / LEDGER_FILE, proposal, met)
