"""Supervision of programs by one foreground process: it restarts them, rotates their logs, and ends them together."""

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

__all__ = ["REFUSED", "Program", "child_environment", "find_program", "supervise"]

REFUSED = 2

_SHORTEST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_STEADY_SECONDS = 60.0
_GRACE_SECONDS = 15.0
_LOG_BYTES, _LOG_FILES = 10_000_000, 5


@dataclass(frozen=True)
class Program:
    """A supervised program.

    Attributes:
        name: its name in messages.
        command: its command line.
        environment: its complete environment.
        log: file for its output; the file's folder is the program's working folder.
        sweep: ends all processes that an earlier start of it left behind.
        refuses: whether exit code 2 means that it refuses its settings, so that a restart would change nothing.
        ready: called after every start, in its own thread, with an event that is set when the process has ended;
            returns soon after that, and must not raise.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path
    sweep: Callable[[], object]
    refuses: bool = False
    ready: Callable[[threading.Event], None] | None = None


def find_program(name: str) -> str | None:
    """Return the path of a program of this environment, or of the system."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def child_environment(**more: str) -> dict[str, str]:
    """Return this process's environment for a child that itself starts Python programs of the same installation.

    PATH contains the programs that Flower starts by name, and PYTHONPATH the folder of a checkout.
    """
    here = str(Path(__file__).resolve().parents[2])
    return {
        **os.environ,
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))),
        "PYTHONPATH": os.pathsep.join(part for part in (here, os.environ.get("PYTHONPATH")) if part),
        **more,
    }


def supervise(programs: Sequence[Program], tell: Callable[[str], None]) -> int:
    """Keep programs running until SIGTERM, SIGINT or SIGHUP (a closed terminal), then end them and their children.

    The caller must hold their `PidFile`: processes of an earlier start are ended, so two supervisors would end each
    other's programs.

    Returns:
        0 after a signal, 2 if a program refused its settings or its log cannot be written.
    """
    stop = threading.Event()
    refused: list[str] = []

    def end(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    mask = os.umask(0o077)
    try:
        for program in programs:
            # Processes that a killed supervisor left behind would hold ports and sockets.
            program.sweep()
        keepers = [
            threading.Thread(target=_keep, args=(program, stop, refused, tell), name=program.name)
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
            program.sweep()
        os.umask(mask)
        for number, handler in before.items():
            signal.signal(number, handler)
    return REFUSED if refused else 0


def _keep(program: Program, stop: threading.Event, refused: list[str], tell: Callable[[str], None]) -> None:
    """Run a program and restart it until `stop`; the pause before a restart doubles while it ends early."""
    pause = _SHORTEST_PAUSE / 2
    try:
        log = _open_log(program.log)
    except OSError as error:
        tell(f"{program.name}: its log cannot be written: {error}")
        refused.append(program.name)
        stop.set()
        return
    while not stop.is_set():
        started = time.monotonic()
        try:
            process = _start(program)
        except OSError as error:
            pause = min(2 * pause, _LONGEST_PAUSE)
            tell(f"{program.name}: cannot be started ({error}); trying again in {pause:g} s")
            stop.wait(pause)
            continue
        tell(f"{program.name}: process {process.pid}, log {program.log}")
        reader = threading.Thread(target=_copy_lines, args=(process, log), daemon=True)
        reader.start()
        ended, preparing = threading.Event(), None
        if program.ready is not None:
            preparing = threading.Thread(target=program.ready, args=(ended,), daemon=True)
            preparing.start()
        while process.poll() is None and not stop.wait(0.2):
            pass
        ended.set()
        if preparing is not None:
            # Two of these threads at once would each mistake the other's process for its own.
            preparing.join(_GRACE_SECONDS)
        if stop.is_set():
            _end(process)
            break
        program.sweep()
        reader.join(1.0)
        if program.refuses and process.returncode == REFUSED:
            tell(f"{program.name}: refused its settings; see {program.log}")
            refused.append(program.name)
            stop.set()
            break
        pause = _SHORTEST_PAUSE if time.monotonic() - started > _STEADY_SECONDS else min(2 * pause, _LONGEST_PAUSE)
        tell(f"{program.name}: ended with {process.returncode}; starting it again in {pause:g} s; see {program.log}")
        stop.wait(pause)
    for handler in log.handlers:
        handler.close()


def _start(program: Program) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        program.command,
        cwd=program.log.parent,
        env=dict(program.environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process by SIGTERM, and after a grace period its whole group by SIGKILL."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _open_log(path: Path) -> logging.Logger:
    """Return a logger of lines, in files of 10 MB; it keeps five old files."""
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
