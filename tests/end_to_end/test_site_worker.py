"""Tests of the worker as a real process with its real socket, called by the app that SuperNode would start."""

import contextlib
import grp
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from flwr.app import Context, Error, Message, RecordDict

from client.app import app as forwarder
from client.in_process_app import create_client_app
from client.worker.process import bind_socket
from client.worker.unix_sockets import WorkerAwayError, WorkerStatus, ask_status, ask_worker, status_path
from ept_fed.config.experiment import Experiment, TrainingSettings
from ept_fed.data.sources.phantom_structures import STRUCTURES
from ept_fed.errors import InputRefusedError
from ept_fed.flower.messages import decode_introduction, encode_proposal, encode_request
from ept_fed.flower.records import SITE_AWAY, SITE_REFUSED
from ept_fed.flower.transport import set_task_identity
from ept_fed.protocol.frames import Frame, Introduce, Refusal, decode_frame, encode_frame
from ept_fed.protocol.messages import Header, RoundReply, RoundRequest
from ept_fed.protocol.proposal import Proposal, SiteIntroduction, propose
from ept_fed.run_plan.plan import Plan
from ept_fed.validation.load_experiment import load_experiment
from ept_fed.validation.load_site import load_site_settings
from server.app import create_server_app
from server.rounds.loop import FederationResult
from simulations.benches.noop_sites import _Silent
from simulations.engine.local_grid import LocalGrid
from simulations.engine.virtual_sites import prepare_federation
from tests.conftest import MICRO
from tests.needs import ROOT as ROOT_USER

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
SITE = "site-1"
LIMIT = 120.0


class Process:
    """A worker in its own process, with the tests' pass-through gate."""

    def __init__(self, kit: Path) -> None:
        self.kit, self.socket = kit, kit / "run" / "worker.sock"
        self.start()

    def start(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.client.listing_gate", str(self.kit)]
        with (self.kit / "log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=self.kit, env=environment, stdout=log, stderr=log)
        wait_for(lambda: self.is_there() or self.process.poll() is not None)
        assert self.process.poll() is None, (self.kit / "log").read_text()

    def is_there(self) -> bool:
        with contextlib.suppress(WorkerAwayError):
            return self.status().pid == self.process.pid
        return False

    def status(self) -> WorkerStatus:
        return ask_status(self.socket, seconds=LIMIT)

    def ask(self, frame: Frame) -> Frame:
        return decode_frame(ask_worker(self.socket, encode_frame(frame), seconds=LIMIT))

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(LIMIT)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "the condition was not met in time"
        time.sleep(0.02)


def make_kit(folder: Path, **sections: object) -> Path:
    folder.mkdir()
    data = {"source": "phantoms", "phantom_sites": 3, "patients_per_class": 8, "sites": [SITE]}
    (folder / "site.yaml").write_text(
        yaml.safe_dump({"site": SITE, "data": data, "model": {"device": "cpu"}, **sections})
    )
    return folder


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    path = tmp_path_factory.mktemp("experiment") / "micro.yaml"
    path.write_text(yaml.safe_dump(MICRO))
    classes = f"data.classes=[{', '.join(STRUCTURES)}]"
    return load_experiment(path, [classes, f"data.sites=[{SITE}]", "model.tokens=1", "model.device=cpu"])


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    process = Process(make_kit(tmp_path_factory.mktemp("site") / "kit"))
    try:
        yield process
        assert process.end() == 0
        assert not list(process.socket.parent.glob("*.sock*"))
    finally:
        process.process.kill()


def federate(plan: Plan, grid: LocalGrid) -> FederationResult:
    results: list[FederationResult] = []
    app = create_server_app(plan, _Silent(), results.append)
    app(grid, Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={}))
    return results[0]


def node(worker_socket: Path) -> Context:
    config = {"worker-socket": str(worker_socket)}
    return Context(run_id=1, node_id=1, node_config=config, state=RecordDict(), run_config={})


def test_two_rounds_through_the_socket_equal_the_simulation_bit_for_bit(
    worker: Process, experiment: Experiment
) -> None:
    virtual = prepare_federation(experiment)
    plan, proposal = virtual.plan(), propose(experiment)
    sites = {name: virtual.create_site(data) for name, data in virtual.data.sites.items()}
    expected = federate(plan, LocalGrid(create_client_app(lambda _: virtual.take_part(sites[SITE])), [SITE]))

    set_task_identity(1)
    question = Message(encode_proposal(plan.run, proposal), 1, "query")
    met = decode_introduction(forwarder(question, node(worker.socket)), plan.run, proposal)
    assert (met.site, met.backbone_digest, met.layout) == (SITE, plan.backbone_digest, plan.layout)
    assert met.initial.tobytes() == plan.initial.tobytes()
    assert met.examples == plan.max_examples[SITE]
    grid = LocalGrid(forwarder, [SITE])
    grid._contexts[1].node_config["worker-socket"] = str(worker.socket)
    networked = federate(plan, grid)
    assert [list(record.refused) for record in networked.rounds] == [[], []]
    assert networked.payload.tobytes() == expected.payload.tobytes()
    for ours, theirs in zip(networked.rounds, expected.rounds, strict=True):
        assert without_seconds(ours.to_json()) == without_seconds(theirs.to_json())


def without_seconds(document: object) -> object:
    def strip(node: object) -> object:
        if isinstance(node, dict):
            return {k: strip(v) for k, v in node.items() if "seconds" not in k and "bytes" not in k}
        return [strip(item) for item in node] if isinstance(node, list) else node

    return strip(json.loads(json.dumps(document)))


def test_only_the_owner_may_use_the_socket(worker: Process) -> None:
    for path in (worker.socket, status_path(worker.socket)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(worker.socket.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE((worker.kit / "state").stat().st_mode) == 0o700


@ROOT_USER.mark
def test_another_user_can_neither_connect_nor_read_the_images(worker: Process, tmp_path: Path) -> None:
    images = worker.kit / "images"
    images.mkdir(mode=0o700, exist_ok=True)
    (images / "patient.png").write_bytes(b"pixels")
    code = f"""
import os, socket
os.setgid(65534); os.setgroups([]); os.setuid(65534)
for act in (lambda: socket.socket(socket.AF_UNIX).connect({str(worker.socket)!r}),
            lambda: os.listdir({str(images)!r}), lambda: open({str(images / "patient.png")!r}),
            lambda: os.listdir({str(worker.kit / "state")!r})):
    try:
        act()
    except PermissionError:
        print("refused")
"""
    # The folders that pytest made become passable, so that only the permissions below the kit count.
    for folder in (worker.kit, *worker.kit.parents):
        if folder.stat().st_uid == os.getuid() and str(folder).startswith(str(tmp_path.parents[1])):
            folder.chmod(folder.stat().st_mode | 0o011)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.split() == ["refused"] * 4


@ROOT_USER.mark
def test_supernodes_user_reaches_the_worker_but_not_its_status() -> None:
    group = grp.getgrgid(65534)
    # Outside pytest's own folder, which no other user may enter.
    outside = Path(tempfile.mkdtemp(prefix="ept-fed-"))
    kit = make_kit(outside / "kit", worker={"socket_group": group.gr_name})
    for folder in (outside, kit):
        folder.chmod(folder.stat().st_mode | 0o011)
    process = Process(kit)
    try:
        code = f"""
import os
from pathlib import Path
from client.worker.unix_sockets import ask_worker
from client.worker.unix_sockets import ask_status
from ept_fed.protocol.frames import Refusal, decode_frame, encode_frame
os.setgid(65534); os.setgroups([65534]); os.setuid(65534)
path = Path({str(process.socket)!r})
print(decode_frame(ask_worker(path, encode_frame(Refusal("no")), seconds=60)).reason)
try:
    ask_status(path, seconds=60)
except PermissionError:
    print("refused")
"""
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd="/")
        assert done.stdout.splitlines() == ["a site does not answer a frame of kind 'refusal'", "refused"]
    finally:
        process.end(signal.SIGKILL)
        shutil.rmtree(outside)


def test_a_second_worker_never_takes_the_socket_of_a_running_one(worker: Process) -> None:
    with pytest.raises(InputRefusedError, match="another worker is running"):
        bind_socket(load_site_settings(worker.kit / "site.yaml"))
    assert worker.is_there()


def test_bytes_that_are_no_frame_are_refused_and_the_worker_keeps_running(worker: Process) -> None:
    for content in (b"GET / HTTP/1.1\r\n\r\n" * 2, b"EPT1" + b"\xff" * 12):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(worker.socket))
            connection.sendall(content)
            assert b"refusal" in connection.recv(1000)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(worker.socket))
        connection.sendall(encode_frame(Refusal("no"))[:10])
    assert worker.is_there()


def test_a_worker_killed_during_training_restarts_and_gives_the_same_reply(
    worker: Process, experiment: Experiment
) -> None:
    training = experiment.training.model_copy(update={"epochs": 60})
    federation = experiment.federation.model_copy(update={"rounds": 4})
    proposal = propose(experiment.model_copy(update={"training": training, "federation": federation}))
    met = worker.ask(Introduce("run-a", proposal))
    assert isinstance(met, SiteIntroduction), met
    short = request(met, proposal, 1)
    first = worker.ask(short)
    assert isinstance(first, RoundReply)
    # A client that disconnects does not stop the training, and gets its answer when it asks again.
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(worker.socket))
        connection.sendall(encode_frame(request(met, proposal, 2)))
        wait_for(lambda: activity(worker) == "train")
    whole = worker.ask(request(met, proposal, 2))
    assert isinstance(whole, RoundReply)

    lost: list[Exception] = []

    def train_for_long() -> None:
        try:
            worker.ask(request(met, proposal, 3))
        except WorkerAwayError as away:
            lost.append(away)

    thread = threading.Thread(target=train_for_long)
    thread.start()
    wait_for(lambda: activity(worker) == "train")
    busy = worker.ask(Introduce("run-b", proposal))
    assert isinstance(busy, Refusal)
    assert "serves another run" in busy.reason
    worker.end(signal.SIGKILL)
    thread.join(LIMIT)
    assert len(lost) == 1
    assert worker.socket.exists()

    away = forwarder(message(met), node(worker.socket))
    assert away.error == Error(SITE_AWAY, "the site's worker does not answer; the site has to start it")
    worker.start()
    again = worker.ask(request(met, proposal, 2))
    assert isinstance(again, RoundReply)
    assert np.array_equal(again.payload, whole.payload)
    wrong = forwarder(message(met), node(worker.socket))
    assert wrong.error.code == SITE_REFUSED


def activity(process: Process) -> str:
    return process.status().activity


def request(met: SiteIntroduction, proposal: Proposal, round_number: int) -> RoundRequest:
    header = Header(met.run, round_number, met.backbone_digest, met.layout.hash)
    rounds, settings = proposal.federation.rounds, proposal.training
    return RoundRequest(header, "train", rounds, met.initial, "train", settings)


def message(met: SiteIntroduction) -> Message:
    """Return a train message for a round that does not exist."""
    set_task_identity(1)
    header = Header(met.run, 9, met.backbone_digest, met.layout.hash)
    asked = RoundRequest(header, "train", 4, met.initial, "train", TrainingSettings())
    return Message(encode_request(asked), 1, "train")
