"""The service behind `ept-fed site start`: worker and SuperNode, restarted when one fails, and ended together.

Three users may share a kit. Only the worker's user reads images, state and `keys/site.key`. SuperNode's user reads
`keys/node` and connects to the socket. A third user edits the settings. `--worker-only` and `--node-only` start the
two programs separately.
"""

import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Literal

from client.app import SOCKET_KEY
from client.gate.open_gate import check_gate
from client.worker.unix_sockets import WorkerAwayError, WorkerStatus, ask_status
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.pki.kit_layout import read_identity
from ept_fed.services.processes import FLOWER_SWITCHES, AlreadyRunsError, PidFile, end_marked
from ept_fed.services.supervisor import Program, child_environment, supervise
from ept_fed.validation.load_site import SiteSettings, check_site, load_site_settings

__all__ = [
    "Part",
    "describe_programs",
    "describe_site",
    "find_service",
    "start_site",
    "stop_site",
]

Part = Literal["worker", "node"]

_MARK = "EPT_FED_SITE"
_GRACE_SECONDS = 15.0
_STATUS_SECONDS = 10.0
# Seconds between two checks for new messages, in the process that starts the app; Flower's default is one second.
_NODE_SWITCHES = {**FLOWER_SWITCHES, "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"}

_log = logging.getLogger(__name__)


def start_site(kit: Path, parts: Sequence[Part], tell: Callable[[str], None]) -> int:
    """Run the parts of a site in the foreground until SIGTERM or SIGINT; return an exit code.

    Raises:
        InputRefusedError: with all problems that prevent the start, before any program is started.
    """
    settings = load_site_settings(kit / "site.yaml")
    problems: list[Problem] = []
    if "worker" in parts:
        problems += check_site(settings)
        try:
            check_gate(settings, kit)
        except InputRefusedError as refusal:
            problems += refusal.problems
    programs: tuple[Program, ...] = ()
    try:
        programs = describe_programs(kit, settings, parts)
    except InputRefusedError as refusal:
        problems += refusal.problems
    with ExitStack() as held:
        for part in parts:
            try:
                held.enter_context(_pid_file(kit.resolve(), part).hold())
            except AlreadyRunsError as running:
                fix = f"its {part} already runs as process {running.pid}; stop it first: ept-fed site stop KIT"
                problems.append(Problem("KIT", str(kit), fix))
            except PermissionError:
                fix = f"the user who runs the {part} must own {_pid_file(kit, part).path.parent}"
                problems.append(Problem("KIT", str(kit), fix))
            except OSError as error:
                problems.append(Problem("KIT", str(kit), f"cannot be written to: {error.strerror}"))
        if problems:
            raise InputRefusedError(problems)
        return supervise(programs, tell)


def describe_programs(kit: Path, settings: SiteSettings, parts: Sequence[Part]) -> tuple[Program, ...]:
    """Return the programs that run the parts of a site.

    Raises:
        InputRefusedError: if required files of the kit are missing.
    """
    kit = kit.resolve()
    programs = []
    if "worker" in parts:
        command = (sys.executable, "-m", "client.worker.process", str(kit))
        programs.append(_program(kit, "worker", command, {}))
    if "node" in parts:
        home = kit / "node" / "flwr-home"
        programs.append(
            _program(kit, "node", _supernode_command(kit, settings), {**_NODE_SWITCHES, "FLWR_HOME": str(home)})
        )
    return tuple(programs)


def find_service(kit: Path) -> dict[Part, int | None]:
    """Return the process ids of a site's running parts.

    The id is None for a part of another user, because only that user can see whether it runs.
    """
    parts: tuple[Part, ...] = ("worker", "node")
    found: dict[Part, int | None] = {}
    for part in parts:
        try:
            pid = _pid_file(kit.resolve(), part).read()
        except PermissionError:
            found[part] = None
        else:
            found |= {} if pid is None else {part: pid}
    return found


def describe_site(kit: Path) -> tuple[dict[Part, int | None], WorkerStatus | None]:
    """Return the running parts as in `find_service`, and the worker's status.

    The status is None if the worker does not answer. It answers only to its own user.

    Raises:
        InputRefusedError: if site.yaml cannot be read.
    """
    settings = load_site_settings(kit / "site.yaml")
    status = None
    with contextlib.suppress(WorkerAwayError, PermissionError):
        status = ask_status(settings.worker.socket, seconds=_STATUS_SECONDS)
    return find_service(kit), status


def stop_site(kit: Path, *, seconds: float = 2 * _GRACE_SECONDS) -> dict[Part, int]:
    """End this user's parts of a site's service; return the process ids of the parts that ran.

    Raises:
        TimeoutError: if a part still runs after `seconds`.
        PermissionError: if a part belongs to another user; the other parts are ended first.
    """
    found = find_service(kit)
    running = {part: pid for part, pid in found.items() if pid is not None}
    for pid in set(running.values()):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + seconds
    while any(find_service(kit).values()):
        if time.monotonic() >= end:
            raise TimeoutError(f"still running after {seconds:g} s")
        time.sleep(0.1)
    others = [part for part, pid in found.items() if pid is None]
    if others:
        raise PermissionError(f"the {' and the '.join(others)} may run: only its own user can stop it")
    return running


def _program(kit: Path, part: Part, command: tuple[str, ...], switches: Mapping[str, str]) -> Program:
    mark = _mark(kit, part)
    return Program(
        name=part,
        command=command,
        environment=child_environment(**switches, **{_MARK: mark}),
        log=kit / "logs" / part / f"{'supernode' if part == 'node' else part}.log",
        sweep=lambda: end_marked(_MARK, mark),
        refuses=part == "worker",
    )


def _pid_file(kit: Path, part: Part) -> PidFile:
    """Return the file with the process id of a part's supervisor, in a folder that belongs to the part's user."""
    return PidFile(kit / ("run" if part == "worker" else "node") / "service.pid")


def _supernode_command(kit: Path, settings: SiteSettings) -> tuple[str, ...]:
    """Return the command of Flower's SuperNode: the consortium's authority for TLS, this node's key, loopback only."""
    server = read_identity(kit).server
    host, port = server.host, server.port
    problems = [
        Problem(name, str(kit / name), "is missing in the kit; get the kit again")
        for name in ("tls/ca.crt", "keys/node")
        if not (kit / name).exists()
    ]
    if '"' in str(settings.worker.socket) or "\\" in str(settings.worker.socket):
        fix = "must not contain quotes or backslashes, because Flower cannot read them; use another path"
        problems.append(Problem("worker.socket", str(settings.worker.socket), fix))
    if problems:
        raise InputRefusedError(problems)
    return (
        *(sys.executable, "-m", "client.deployment.supernode"),
        *("--superlink", f"[{host}]:{port}" if ":" in host else f"{host}:{port}"),
        *("--root-certificates", str(kit / "tls" / "ca.crt")),
        *("--auth-supernode-private-key", str(kit / "keys" / "node")),
        *("--host", "127.0.0.1"),
        *("--port", str(settings.node.runtime_port)),
        *("--node-config", f'site="{settings.site}" {SOCKET_KEY}="{settings.worker.socket}"'),
    )


def _mark(kit: Path, part: Part) -> str:
    return f"{kit.resolve()}:{part}"
