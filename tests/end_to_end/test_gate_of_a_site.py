"""Tests of the gate in a separate worker process: rounds pass, crafted frames are refused, and all are recorded."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Context, RecordDict

from client.app import app as forwarder
from client.audit.report import show_ledger, verify_ledger
from client.worker.unix_sockets import WorkerAwayError, ask_status, ask_worker
from ept_fed.config.experiment import Experiment
from ept_fed.data.sources.phantom_structures import STRUCTURES
from ept_fed.protocol.frames import Frame, Introduce, Refusal, decode_frame, encode_frame
from ept_fed.protocol.messages import RoundReply, RoundRequest
from ept_fed.protocol.proposal import SiteIntroduction, propose
from ept_fed.validation.load_experiment import load_experiment
from server.app import create_server_app
from server.rounds.loop import FederationResult
from simulations.benches.noop_sites import _Silent
from simulations.engine.local_grid import LocalGrid
from simulations.engine.virtual_sites import prepare_federation
from tests.conftest import MICRO

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
SITE = "site-1"
LIMIT = 120.0
POLICY = {
    "schema": 1,
    "outgoing": {"min_images": 2, "min_training_images": 2, "digits": 4},
    "incoming": {"backbone": "first", "training": {"batch_size": [4, 8]}},
}


class GatedSite:
    """A kit and its worker, started as by `ept-fed site start`."""

    def __init__(self, kit: Path) -> None:
        kit.mkdir()
        self.kit, self.socket, self.ledger = kit, kit / "run" / "worker.sock", kit / "state" / "ledger.jsonl"
        data = {"source": "phantoms", "phantom_sites": 3, "patients_per_class": 8, "sites": [SITE]}
        document = {"site": SITE, "data": data, "model": {"device": "cpu"}}
        (kit / "site.yaml").write_text(yaml.safe_dump(document))
        (kit / "policy.yaml").write_text(yaml.safe_dump(POLICY))
        (kit / "keys").mkdir()
        key = ec.generate_private_key(ec.SECP384R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (kit / "keys" / "site.key").write_bytes(key)
        (kit / "keys" / "site.key").chmod(0o600)
        self.start()

    def start(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "client.worker.process", str(self.kit)]
        with (self.kit / "log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=self.kit, env=environment, stdout=log, stderr=log)
        end = time.monotonic() + LIMIT
        while not self.is_there():
            assert self.process.poll() is None, (self.kit / "log").read_text()
            assert time.monotonic() < end, "the worker did not answer in time"
            time.sleep(0.02)

    def is_there(self) -> bool:
        with contextlib.suppress(WorkerAwayError):
            ask_status(self.socket, seconds=LIMIT)
            return True
        return False

    def ask(self, frame: Frame) -> Frame:
        return decode_frame(ask_worker(self.socket, encode_frame(frame), seconds=LIMIT))

    def end(self, number: int) -> None:
        self.process.send_signal(number)
        self.process.wait(LIMIT)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    path = tmp_path_factory.mktemp("experiment") / "micro.yaml"
    path.write_text(yaml.safe_dump(MICRO))
    classes = f"data.classes=[{', '.join(STRUCTURES)}]"
    return load_experiment(path, [classes, f"data.sites=[{SITE}]", "model.tokens=1", "model.device=cpu"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatedSite]:
    made = GatedSite(tmp_path_factory.mktemp("site") / "kit")
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait(LIMIT)


def test_a_run_passes_the_gate_and_requests_beyond_the_policy_are_refused(
    site: GatedSite, experiment: Experiment
) -> None:
    plan, proposal = prepare_federation(experiment).plan(), propose(experiment)
    met = site.ask(Introduce(plan.run, proposal))
    assert isinstance(met, SiteIntroduction), met

    grid = LocalGrid(forwarder, [SITE])
    grid._contexts[1].node_config["worker-socket"] = str(site.socket)
    results: list[FederationResult] = []
    app = create_server_app(plan, _Silent(), results.append)
    app(grid, Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={}))
    assert [list(record.refused) for record in results[0].rounds] == [[], []]

    last = RoundRequest(plan.header(2), "train", plan.rounds, results[0].payload, "train", plan.training)
    greedy = proposal.training.model_copy(update={"epochs": 999, "batch_size": 1})
    crafted = results[0].payload + np.float32(9)
    for asked, rules in (
        (dataclasses.replace(last, settings=greedy), ("epochs", "batch_size", "replay")),
        (dataclasses.replace(last, payload=crafted), ("replay",)),
        (dataclasses.replace(last, wants_gradient=True), ("outgoing.gradient",)),
        (dataclasses.replace(last, phase="evaluate", split="train", settings=None), ("incoming.splits",)),
        (Introduce(plan.run, proposal.model_copy(update={"seed": 9})), ("protocol.run",)),
    ):
        answer = site.ask(asked)
        assert isinstance(answer, Refusal), answer
        assert all(rule in answer.reason for rule in rules)
        assert "999" not in answer.reason
        assert str(site.kit) not in answer.reason

    report = verify_ledger(site.ledger, every_signature=True)
    assert report["status"] == "sound"
    assert report["totals"]["received"]["refused"] == 5
    sent = show_ledger(site.ledger, direction="out", kind="train")
    assert [entry["decision"] for entry in sent] == ["passed", "passed"]
    assert {name for entry in sent for name, _ in entry["tensors"]} == {"sinks", "tokens"}


def test_a_killed_worker_continues_with_its_ledger_and_its_history(site: GatedSite, experiment: Experiment) -> None:
    before = verify_ledger(site.ledger)["entries"]
    site.end(signal.SIGKILL)
    site.start()
    plan = prepare_federation(experiment).plan()
    again = RoundRequest(plan.header(1), "train", plan.rounds, plan.initial, "train", plan.training)
    assert isinstance(site.ask(again), RoundReply)
    other = dataclasses.replace(again, payload=plan.initial + np.float32(0.01))
    answer = site.ask(other)
    assert isinstance(answer, Refusal)
    assert "protocol.replay" in answer.reason
    report = verify_ledger(site.ledger)
    assert (report["status"], report["entries"]) == ("sound", before + 3)
    site.end(signal.SIGTERM)
    assert site.process.returncode == 0
