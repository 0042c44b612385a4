"""`ept-fed site start`: the worker, and SuperNode beside it, started again if one dies, ended together.

Three users may share a kit: the worker's, which alone reads images, state and `keys/site.key`; SuperNode's, which reads
`keys/node` and connects to the socket; and whoever edits. `--worker-only` and `--node-only` run them apart.
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
from client.gate.open import check_gate
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
# How often the process that starts the app looks for a message that has come; Flower's own default is a second.
_NODE_SWITCHES = {**FLOWER_SWITCHES, "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"}

_log = logging.getLogger(__name__)


def start_site(kit: Path, parts: Sequence[Part], tell: Callable[[str], None]) -> int:
    """Run the parts of a site in the foreground until SIGTERM or SIGINT; return an exit code.

    Raises:
        InputRefusedError: with everything that stands in the way, before anything is started.
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
                fix = f"its {part} runs already, as process {running.pid}; stop it first: ept-fed site stop KIT"
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
    """Return how the parts are started.

    Raises:
        InputRefusedError: if files of the kit that they need are missing.
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
    """Return which parts of a site run, and as which processes; None for another user's part, who alone can tell."""
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
    """Return which parts are kept running, see `find_service`, and what the worker says; None if it does not answer,
    as it does nobody but its own user.

    Raises:
        InputRefusedError: if site.yaml cannot be read.
    """
    settings = load_site_settings(kit / "site.yaml")
    status = None
    with contextlib.suppress(WorkerAwayError, PermissionError):
        status = ask_status(settings.worker.socket, seconds=_STATUS_SECONDS)
    return find_service(kit), status


def stop_site(kit: Path, *, seconds: float = 2 * _GRACE_SECONDS) -> dict[Part, int]:
    """End this user's parts of a site's service; return what ran.

    Raises:
        TimeoutError: if it is still there after so many seconds.
        PermissionError: if a part is another user's; the others are ended first.
    """
    found = find_service(kit)
    running = {part: pid for part, pid in found.items() if pid is not None}
    for pid in set(running.values()):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + seconds
    while any(find_service(kit).values()):
        if time.monotonic() >= end:
            raise TimeoutError(f"still there after {seconds:g} s")
        time.sleep(0.1)
    others = [part for part, pid in found.items() if pid is None]
    if others:
        raise PermissionError(f"the {' and the '.join(others)} may run: another user's, who alone can stop it")
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
    """Return where a part's supervisor is named: in a folder that is that part's user's own."""
    return PidFile(kit / ("run" if part == "worker" else "node") / "service.pid")


def _supernode_command(kit: Path, settings: SiteSettings) -> tuple[str, ...]:
    """Return Flower's SuperNode: TLS by the consortium's own authority, this node's key, processes on loopback only."""
    server = read_identity(kit).server
    host, port = server.host, server.port
    problems = [
        Problem(name, str(kit / name), "is missing in the kit; get the kit again")
        for name in ("tls/ca.crt", "keys/node")
        if not (kit / name).exists()
    ]
    if '"' in str(settings.worker.socket) or "\\" in str(settings.worker.socket):
        fix = "must not hold quotes or backslashes: Flower could not read it; give another path"
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
