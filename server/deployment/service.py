"""The service behind `ept-fed server start`: it keeps SuperLink on loopback and the proxy in front of it running."""

import contextlib
import json
import logging
import os
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from socket import SO_REUSEADDR, SOL_SOCKET, socket
from typing import Any, Literal

from ept_fed.errors import InputRefusedError, Problem, UnavailableError
from ept_fed.services.processes import FLOWER_SWITCHES, AlreadyRunsError, PidFile, end_marked
from ept_fed.services.supervisor import Program, child_environment, find_program, supervise
from ept_fed.storage.files import write_json
from server.deployment.proxy import end_proxy, find_nginx, nginx_command, write_proxy_files
from server.deployment.readiness import make_ready, withdraw
from server.deployment.server_kit import KIT_VARIABLE, ServerKit, open_server_kit

__all__ = ["ServerAwayError", "find_server", "find_superlink_port", "start_server", "stop_server"]

_STOP_SECONDS = 40.0

_log = logging.getLogger(__name__)


class ServerAwayError(UnavailableError):
    """The server of this kit does not run."""


def start_server(folder: Path, proxy: Literal["nginx", "none"], tell: Callable[[str], None]) -> int:
    """Run the server of a kit in the foreground until SIGTERM or SIGINT; return an exit code.

    Raises:
        InputRefusedError: with all problems that prevent the start, before any program is started.
    """
    kit = open_server_kit(folder)
    problems = kit.find_tls_problems(datetime.now(UTC))
    superlink = find_program("flower-superlink")
    if superlink is None:
        problems.append(Problem("flower-superlink", "", "is not installed; install ept-fed with its dependencies"))
    nginx = None
    try:
        kit.public_keys()
        nginx = find_nginx() if proxy == "nginx" else None
    except InputRefusedError as refusal:
        problems += refusal.problems
    if problems or superlink is None:
        raise InputRefusedError(problems)
    kit.make_state()
    try:
        with _pid_file(kit).hold():
            return _run(kit, superlink, nginx, proxy, tell)
    except AlreadyRunsError as running:
        fix = f"its server already runs as process {running.pid}; stop it first: ept-fed server stop KIT"
        raise InputRefusedError([Problem("KIT", str(kit.folder), fix)]) from running


def _run(
    kit: ServerKit, superlink: str, nginx: str | None, proxy: Literal["nginx", "none"], tell: Callable[[str], None]
) -> int:
    # A killed server can leave ready.json, which permits runs, and processes that occupy the ports.
    withdraw(kit)
    end_marked(KIT_VARIABLE, str(kit.folder))
    end_proxy(_proxy_log(kit).parent)
    port = _free_port(_read_port(kit))
    write_proxy_files(kit, port, nginx=nginx)
    if nginx is not None:
        _require_free(kit)
    programs = [_superlink(kit, superlink, port, tell)]
    if nginx is not None:
        programs.append(_proxy(kit, nginx))
    document = {"schema": 1, "superlink_port": port, "proxy": proxy, "started": time.time()}
    write_json(kit.state / "server.json", document)
    try:
        return supervise(programs, tell)
    finally:
        withdraw(kit)


def find_server(kit: ServerKit) -> int | None:
    """Return the id of the process that keeps the server running, or None if the server does not run.

    Raises:
        PermissionError: if the kit belongs to another user.
    """
    return _pid_file(kit).read()


def find_superlink_port(kit: ServerKit) -> int:
    """Return the loopback port of the running SuperLink.

    Raises:
        ServerAwayError: if the server does not run.
    """
    port = _read_port(kit)
    if port is not None and find_server(kit) is not None:
        return port
    raise ServerAwayError(f"no server runs from {kit.folder}; start it with: ept-fed server start KIT")


def stop_server(kit: ServerKit) -> int | None:
    """End the server; return the id of its process, or None if it did not run.

    Raises:
        TimeoutError: if the process still runs after a time limit.
        PermissionError: if another user started it.
    """
    pid = find_server(kit)
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + _STOP_SECONDS
    while find_server(kit) is not None:
        if time.monotonic() >= end:
            raise TimeoutError(f"process {pid} still runs after {_STOP_SECONDS:g} s")
        time.sleep(0.1)
    return pid


def _superlink(kit: ServerKit, program: str, port: int, tell: Callable[[str], None]) -> Program:
    tls, state = kit.folder / "tls", kit.state
    command = (
        program,
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--ssl-ca-certfile", str(tls / "ca.crt")),
        *("--ssl-certfile", str(tls / "superlink.crt"), "--ssl-keyfile", str(tls / "superlink.key")),
        "--enable-supernode-auth",
        *("--database", str(state / "superlink.db")),
        "--disable-runtime-dependency-installation",
    )
    environment = child_environment(
        **FLOWER_SWITCHES, FLWR_HOME=str(state / "flwr-home"), **{KIT_VARIABLE: str(kit.folder)}
    )
    return Program(
        name="superlink",
        command=command,
        environment=environment,
        log=state / "logs" / "superlink" / "superlink.log",
        sweep=lambda: end_marked(KIT_VARIABLE, str(kit.folder)),
        ready=lambda ended: make_ready(kit, port, tell, ended),
    )


def _proxy(kit: ServerKit, nginx: str) -> Program:
    log = _proxy_log(kit)
    return Program(
        name="proxy",
        command=nginx_command(nginx, kit),
        environment=dict(os.environ),
        log=log,
        sweep=lambda: end_proxy(log.parent),
    )


def _proxy_log(kit: ServerKit) -> Path:
    """Return the path of the proxy's log; the folder of a program's log is its working directory."""
    return kit.state / "logs" / "proxy" / "proxy.log"


def _require_free(kit: ServerKit) -> None:
    """Raise InputRefusedError if another program listens on the port for the hospitals."""
    port = kit.federation.server.port
    with socket() as probe:
        probe.settimeout(2)
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            fix = (
                "is used by another program on this machine; end that program. For another port, change "
                "federation.yaml, run ept-fed provision, and give every site its new kit"
            )
            raise InputRefusedError([Problem("server.port", port, fix)])


def _read_port(kit: ServerKit) -> int | None:
    """Return SuperLink's port of the current or the last run of the server, or None if no port is recorded."""
    try:
        document: Any = json.loads((kit.state / "server.json").read_text(encoding="utf-8"))
        return int(document["superlink_port"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _free_port(wanted: int | None) -> int:
    """Return the wanted port if it is free, else any free port; a user's own proxy then keeps its configuration."""
    for port in (wanted, 0):
        with socket() as listener:
            listener.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
            try:
                listener.bind(("127.0.0.1", port or 0))
            except OSError:
                continue
            return int(listener.getsockname()[1])
    raise InputRefusedError([Problem("loopback", "127.0.0.1", "has no free port for SuperLink")])


def _pid_file(kit: ServerKit) -> PidFile:
    return PidFile(kit.state / "server.pid")
