"""Tests of the service around worker and SuperNode: it restarts killed programs and leaves no process behind."""

import errno
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from client.deployment.service import _MARK, describe_programs, find_service, start_site, stop_site
from client.worker.process import _accept, _wait, bind_socket, bind_status
from client.worker.unix_sockets import ask_worker, status_path
from ept_fed.config.consortium import ServerAddress
from ept_fed.errors import InputRefusedError
from ept_fed.pki.kit_layout import KitIdentity
from ept_fed.protocol.frames import Refusal, encode_frame
from ept_fed.services.processes import AlreadyRunsError, PidFile, end_marked, find_marked
from ept_fed.services.supervisor import REFUSED, Program, supervise
from ept_fed.validation.load_site import load_site_settings
from tests.client.listing_gate import ListingGate

ROOT = Path(__file__).resolve().parents[3]
LIMIT = 60.0

# Replaces SuperNode: it starts a process in its own session, as Flower does for every message.
PROGRAM = """
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print("started", os.getpid(), flush=True)
time.sleep(600)
"""
SUPERVISOR = """
import os, sys
from pathlib import Path
from client.deployment.service import _MARK, _mark, _pid_file
from ept_fed.services.processes import end_marked
from ept_fed.services.supervisor import Program, supervise
kit, code = Path(sys.argv[1]), sys.argv[2]
environment = {**os.environ, _MARK: _mark(kit, "node")}
program = Program("node", (sys.executable, "-c", code), environment, kit / "logs" / "node.log",
    sweep=lambda: end_marked(_MARK, _mark(kit, "node")))
with _pid_file(kit, "node").hold():
    sys.exit(supervise([program], print))
"""


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "the condition was not met in time"
        time.sleep(0.02)


def started(kit: Path) -> list[int]:
    log = kit / "logs" / "node.log"
    return [int(line.split()[1]) for line in log.read_text().splitlines()] if log.exists() else []


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", SUPERVISOR, str(tmp_path), PROGRAM], env=environment)
    try:
        wait_for(lambda: started(tmp_path))
        yield process
    finally:
        process.kill()
        process.wait()
        end_marked(_MARK, f"{tmp_path.resolve()}:node")


@pytest.mark.integration
def test_a_program_that_is_killed_is_started_again_and_stop_leaves_no_orphan(
    supervisor: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    (first,) = started(tmp_path)
    mark = f"{tmp_path.resolve()}:node"
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: len(started(tmp_path)) == 2)
    assert find_service(tmp_path) == {"node": supervisor.pid}
    wait_for(lambda: len(find_marked(_MARK, mark)) == 2)
    assert stop_site(tmp_path) == {"node": supervisor.pid}
    assert supervisor.wait(LIMIT) == 0
    assert find_marked(_MARK, mark) == []
    assert find_service(tmp_path) == {}


@pytest.mark.integration
def test_the_next_service_ends_the_processes_of_a_killed_one(
    supervisor: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    mark = f"{tmp_path.resolve()}:node"
    wait_for(lambda: len(find_marked(_MARK, mark)) == 2)
    left = find_marked(_MARK, mark)
    supervisor.kill()
    supervisor.wait()
    assert find_service(tmp_path) == {}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    second = subprocess.Popen([sys.executable, "-c", SUPERVISOR, str(tmp_path), PROGRAM], env=environment)
    try:
        wait_for(lambda: len(started(tmp_path)) == 2)
        assert not set(left) & set(find_marked(_MARK, mark))
    finally:
        second.terminate()
        assert second.wait(LIMIT) == 0
    assert find_marked(_MARK, mark) == []


@pytest.mark.integration
def test_a_worker_ends_with_the_process_that_started_it() -> None:
    worker = (
        "import os, socket; from client.worker.process import _wait; pair = socket.socketpair();"
        "from tests.client.listing_gate import ListingGate;"
        # Read before the test kills the parent: afterwards getppid() returns another process.
        "parent = os.getppid(); print('waits', flush=True); _wait(pair[0], parent, ListingGate())"
    )
    parent = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {worker!r}]); time.sleep(600)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", parent], env=environment, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"waits\n"
    process.kill()
    process.wait()
    assert process.stdout.read() == b""  # the pipe closes when the worker has ended
    process.stdout.close()


def test_a_worker_whose_ledger_is_closed_ends() -> None:
    class EndedGate(ListingGate):
        @property
        def ended(self) -> bool:
            return True

    ours, _theirs = socket.socketpair()
    _wait(ours, os.getppid(), EndedGate())


@pytest.mark.integration
def test_a_program_that_cannot_be_started_is_reported_and_tried_again(tmp_path: Path) -> None:
    said: list[str] = []

    def tell(sentence: str) -> None:
        said.append(sentence)
        if len(said) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    program = Program("node", (str(tmp_path / "nowhere"),), {}, tmp_path / "logs" / "node.log", sweep=lambda: None)
    assert supervise([program], tell) == 0
    assert len(said) == 2
    assert all("cannot be started" in sentence for sentence in said)


def test_a_program_whose_log_cannot_be_written_ends_the_service(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "logs").touch()
    program = Program("node", ("true",), {}, tmp_path / "logs" / "node.log", sweep=lambda: None)
    assert supervise([program], said.append) == REFUSED
    assert "its log cannot be written" in said[0]


@pytest.mark.integration
def test_a_temporary_error_does_not_stop_the_socket_from_accepting() -> None:
    class Tired(socket.socket):
        failures = 1

        def accept(self) -> Any:
            if self.failures:
                self.failures -= 1
                raise OSError(errno.EMFILE, "Too many open files")
            return super().accept()

    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        path = f"{folder}/s"
        listener = Tired(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(path)
        listener.listen()
        Thread(target=_accept, args=(listener, lambda frame: frame), daemon=True).start()
        question = encode_frame(Refusal("nothing"))
        assert ask_worker(Path(path), question, seconds=LIMIT) == question


def test_a_pid_file_of_a_killed_service_names_no_process(tmp_path: Path) -> None:
    file = PidFile(tmp_path / "service.pid")
    with file.hold():
        assert file.read() == os.getpid()
        with pytest.raises(AlreadyRunsError, match=str(os.getpid())), file.hold():
            raise AssertionError("the PID file was held twice")
    assert file.read() is None
    file.path.write_text("1\n")
    assert file.read() is None
    assert stop_site(tmp_path) == {}


def test_a_program_of_another_user_is_reported_and_not_taken_for_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = PidFile.read

    def forbid(file: PidFile) -> int | None:
        if file.path.parent.name == "node":
            raise PermissionError(13, "Permission denied")
        return read(file)

    monkeypatch.setattr(PidFile, "read", forbid)
    assert find_service(tmp_path) == {"node": None}
    with pytest.raises(PermissionError, match="the node may run"):
        stop_site(tmp_path)


def test_without_a_key_for_the_ledger_nothing_is_started(make_kit: Callable[..., Path]) -> None:
    with pytest.raises(InputRefusedError, match=r"site\.key"):
        start_site(make_kit(), ("worker",), lambda _: pytest.fail("something was started"))


def test_supernode_gets_the_kits_key_the_workers_socket_and_no_telemetry(make_kit: Callable[..., Path]) -> None:
    kit = make_kit()
    settings = load_site_settings(kit / "site.yaml")
    with pytest.raises(InputRefusedError, match=r"federation\.json"):
        describe_programs(kit, settings, ("node",))
    server = ServerAddress(host="fl.example.org", port=8443)
    identity = KitIdentity(federation="f", site="site-1", server=server, version="0")
    (kit / "federation.json").write_bytes(identity.serialize())
    with pytest.raises(InputRefusedError, match=r"tls/ca\.crt[\s\S]*keys/node"):
        describe_programs(kit, settings, ("node",))
    for name in ("tls/ca.crt", "keys/node"):
        (kit / name).parent.mkdir(exist_ok=True)
        (kit / name).touch()
    (program,) = describe_programs(kit, settings, ("node",))
    assert program.command[:3] == (sys.executable, "-m", "client.deployment.supernode")
    options = dict(zip(program.command[3::2], program.command[4::2], strict=True))
    assert options == {
        "--superlink": "fl.example.org:8443",
        "--root-certificates": str(kit / "tls" / "ca.crt"),
        "--auth-supernode-private-key": str(kit / "keys" / "node"),
        "--host": "127.0.0.1",
        "--port": "9094",
        "--node-config": f'site="site-1" worker-socket="{kit}/run/worker.sock"',
    }
    assert program.environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert program.environment["FLWR_HOME"] == str(kit / "node" / "flwr-home")


@pytest.mark.parametrize("document", ["", "[]", "{}", '{"schema": 1, "server": {"host": 1, "port": 1}}', "\xff"])
def test_an_invalid_federation_json_is_refused(make_kit: Callable[..., Path], document: str) -> None:
    kit = make_kit()
    (kit / "federation.json").write_text(document)
    with pytest.raises(InputRefusedError, match=r"federation\.json"):
        describe_programs(kit, load_site_settings(kit / "site.yaml"), ("node",))


def test_a_socket_in_a_folder_open_to_others_is_refused_and_the_folder_left_alone(
    make_kit: Callable[..., Path],
) -> None:
    kit = make_kit()
    (kit / "run").mkdir(mode=0o755)
    with pytest.raises(InputRefusedError, match="chmod 700"):
        bind_socket(load_site_settings(kit / "site.yaml"))
    assert stat.S_IMODE((kit / "run").stat().st_mode) == 0o755


@pytest.mark.integration
def test_a_group_may_connect_if_the_site_sets_it(make_kit: Callable[..., Path]) -> None:
    import grp

    group = grp.getgrgid(os.getgid()).gr_name
    kit = make_kit(worker={"socket_group": group})
    settings = load_site_settings(kit / "site.yaml")
    with bind_socket(settings), bind_status(settings):
        assert stat.S_IMODE(status_path(settings.worker.socket).stat().st_mode) == 0o600
        assert stat.S_IMODE((kit / "run" / "worker.sock").stat().st_mode) == 0o660
        assert stat.S_IMODE((kit / "run").stat().st_mode) == 0o750
    unknown = make_kit("other", worker={"socket_group": "nobody-has-this"})
    with pytest.raises(InputRefusedError, match=r"worker\.socket_group"):
        bind_socket(load_site_settings(unknown / "site.yaml"))
