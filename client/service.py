"""`ept-fed site start`: the worker, and SuperNode beside it, started again if one dies, ended together.

Three users may share a kit: the worker's, which alone reads images, state and `keys/site.key`; SuperNode's, which reads
`keys/node` and connects to the socket; and whoever edits. `--worker-only` and `--node-only` run them apart.
"""

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import FrameType
from typing import Literal

from client.app import SOCKET_KEY
from client.site_kit import read_server
from client.worker_process import open_door
from client.worker_socket import WorkerAwayError, ask_worker
from ept_fed.problems import InputRefusedError, Problem
from ept_fed.processes import FLOWER_SWITCHES, PidFile, end_marked
from ept_fed.protocol.frames import StatusRequest, WorkerStatus
from ept_fed.protocol.messages import MessageRefusedError
from ept_fed.site_settings import SiteSettings, check_site, load_site_settings

__all__ = [
    "Part",
    "Program",
    "describe_programs",
    "describe_site",
    "find_service",
    "start_site",
    "stop_site",
    "supervise",
]

Part = Literal["worker", "node"]
REFUSED = 2

_MARK = "EPT_FED_SITE"
_SHORTEST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_STEADY_SECONDS = 60.0
_GRACE_SECONDS = 15.0
_STATUS_SECONDS = 10.0
_LOG_BYTES, _LOG_FILES = 10_000_000, 5

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Program:
    """One of the two processes: how it is started, where it logs, and where its supervisor is named."""

    part: Part
    command: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path
    pid_file: PidFile


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
            # Opened here only to be refused in time; the worker opens its own.
            open_door(settings, kit)
        except InputRefusedError as refusal:
            problems += refusal.problems
    programs: tuple[Program, ...] = ()
    try:
        programs = describe_programs(kit, settings, parts)
    except InputRefusedError as refusal:
        problems += refusal.problems
    for program in programs:
        if (pid := program.pid_file.read()) is not None:
            fix = f"its {program.part} runs already, as process {pid}; stop it first: ept-fed site stop KIT"
            problems.append(Problem("KIT", str(kit), fix))
    if problems:
        raise InputRefusedError(problems)
    return supervise(kit, programs, tell)


def describe_programs(kit: Path, settings: SiteSettings, parts: Sequence[Part]) -> tuple[Program, ...]:
    """Return how the parts are started.

    Raises:
        InputRefusedError: if files of the kit that they need are missing, or Flower is.
    """
    kit = kit.resolve()
    programs = []
    if "worker" in parts:
        command = (sys.executable, "-m", "client.worker_process", str(kit))
        programs.append(_program(kit, "worker", command, {}))
    if "node" in parts:
        home = kit / "node" / "flwr-home"
        programs.append(
            _program(kit, "node", _supernode_command(kit, settings), {**FLOWER_SWITCHES, "FLWR_HOME": str(home)})
        )
    return tuple(programs)


def supervise(kit: Path, programs: Sequence[Program], tell: Callable[[str], None]) -> int:
    """Keep programs running until SIGTERM or SIGINT, then end them and all that they started.

    Returns:
        0 after a signal, 2 if a program refused its settings: starting it again would change nothing.
    """
    stop = threading.Event()
    refused: list[Part] = []

    def end(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for program in programs:
            # What a killed supervisor left behind would hold ports and the socket.
            end_marked(_MARK, _mark(kit, program.part))
            program.pid_file.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            program.pid_file.write()
        keepers = [
            threading.Thread(target=_keep, args=(kit, program, stop, refused, tell), name=program.part)
            for program in programs
        ]
        for keeper in keepers:
            keeper.start()
        while not stop.wait(0.5):
            pass
        for keeper in keepers:
            keeper.join()
    finally:
        for program in programs:
            end_marked(_MARK, _mark(kit, program.part))
            program.pid_file.remove()
        for number, handler in before.items():
            signal.signal(number, handler)
    return REFUSED if refused else 0


def find_service(kit: Path) -> dict[Part, int]:
    """Return which parts of a site run, and as which processes."""
    parts: tuple[Part, ...] = ("worker", "node")
    found = {part: _pid_file(kit.resolve(), part).read() for part in parts}
    return {part: pid for part, pid in found.items() if pid is not None}


def describe_site(kit: Path) -> tuple[dict[Part, int], WorkerStatus | None]:
    """Return which parts are kept running, by which processes, and what the worker says; None if it does not answer.

    Raises:
        InputRefusedError: if site.yaml cannot be read.
    """
    settings = load_site_settings(kit / "site.yaml")
    try:
        status = ask_worker(settings.worker.socket, StatusRequest(), seconds=_STATUS_SECONDS)
    except (WorkerAwayError, MessageRefusedError):
        status = None
    return find_service(kit), status if isinstance(status, WorkerStatus) else None


def stop_site(kit: Path, *, seconds: float = 2 * _GRACE_SECONDS) -> dict[Part, int]:
    """End a site's service; return what ran.

    Raises:
        TimeoutError: if it is still there after so many seconds.
        PermissionError: if another user started it.
    """
    running = find_service(kit)
    for pid in set(running.values()):
        os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + seconds
    while find_service(kit):
        if time.monotonic() >= end:
            raise TimeoutError(f"still there after {seconds:g} s")
        time.sleep(0.1)
    return running


def _program(kit: Path, part: Part, command: tuple[str, ...], switches: Mapping[str, str]) -> Program:
    name = "supernode" if part == "node" else part
    environment = {**os.environ, **switches, _MARK: _mark(kit, part)}
    # The programs that Flower starts itself are found by their names, and a checkout's modules by its folder.
    environment["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    here = str(Path(__file__).resolve().parents[1])
    environment["PYTHONPATH"] = os.pathsep.join(part for part in (here, os.environ.get("PYTHONPATH")) if part)
    return Program(part, command, environment, kit / "logs" / part / f"{name}.log", _pid_file(kit, part))


def _pid_file(kit: Path, part: Part) -> PidFile:
    """Return where a part's supervisor is named: in a folder that is that part's user's own."""
    return PidFile(kit / ("run" if part == "worker" else "node") / "service.pid")


def _supernode_command(kit: Path, settings: SiteSettings) -> tuple[str, ...]:
    """Return Flower's SuperNode: TLS by the consortium's own authority, this node's key, processes on loopback only."""
    host, port = read_server(kit)
    program = shutil.which("flower-supernode", path=str(Path(sys.executable).parent)) or shutil.which(
        "flower-supernode"
    )
    problems = [
        Problem(name, str(kit / name), "is missing in the kit; get the kit again")
        for name in ("tls/ca.crt", "keys/node")
        if not (kit / name).exists()
    ]
    if program is None:
        problems.append(Problem("flower-supernode", "", "is not installed; install ept-fed with its dependencies"))
    if '"' in str(settings.worker.socket) or "\\" in str(settings.worker.socket):
        fix = "must not hold quotes or backslashes: Flower could not read it; give another path"
        problems.append(Problem("worker.socket", str(settings.worker.socket), fix))
    if problems or program is None:
        raise InputRefusedError(problems)
    return (
        program,
        *("--superlink", f"[{host}]:{port}" if ":" in host else f"{host}:{port}"),
        *("--root-certificates", str(kit / "tls" / "ca.crt")),
        *("--auth-supernode-private-key", str(kit / "keys" / "node")),
        *("--host", "127.0.0.1"),
        *("--port", str(settings.node.runtime_port)),
        *("--node-config", f'site="{settings.site}" {SOCKET_KEY}="{settings.worker.socket}"'),
    )


def _keep(kit: Path, program: Program, stop: threading.Event, refused: list[Part], tell: Callable[[str], None]) -> None:
    """Run a program again and again until `stop`, after pauses that double while it dies early."""
    pause = _SHORTEST_PAUSE / 2
    log = _open_log(program.log)
    while not stop.is_set():
        started = time.monotonic()
        process = subprocess.Popen(
            program.command,
            cwd=program.log.parent,
            env=dict(program.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        tell(f"{program.part}: process {process.pid}, log {program.log}")
        reader = threading.Thread(target=_copy_lines, args=(process, log), daemon=True)
        reader.start()
        while process.poll() is None and not stop.wait(0.2):
            pass
        if stop.is_set():
            _end(process)
            break
        end_marked(_MARK, _mark(kit, program.part))
        reader.join(1.0)
        if program.part == "worker" and process.returncode == REFUSED:
            tell(f"{program.part}: refused its settings; see {program.log}")
            refused.append(program.part)
            stop.set()
            break
        pause = _SHORTEST_PAUSE if time.monotonic() - started > _STEADY_SECONDS else min(2 * pause, _LONGEST_PAUSE)
        tell(f"{program.part}: ended with {process.returncode}; starting it again in {pause:g} s; see {program.log}")
        stop.wait(pause)
    for handler in log.handlers:
        handler.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process: asked first, then not."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _open_log(path: Path) -> logging.Logger:
    """Return a logger of lines, in files of 10 MB of which five are kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = RotatingFileHandler(path, maxBytes=_LOG_BYTES, backupCount=_LOG_FILES, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.Logger(path.stem)
    logger.addHandler(handler)
    return logger


def _copy_lines(process: subprocess.Popen[bytes], log: logging.Logger) -> None:
    if process.stdout is not None:
        for line in process.stdout:
            log.info("%s", line.decode(errors="replace").rstrip())


def _mark(kit: Path, part: Part) -> str:
    return f"{kit.resolve()}:{part}"
