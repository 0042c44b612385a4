"""Child processes of a service: marked at the start, watched, and ended with all processes that they started."""

import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

__all__ = ["FLOWER_SWITCHES", "AlreadyRunsError", "PidFile", "end_marked", "find_marked", "is_alive"]

# A reader holds a lock for an instant, which must not look like a running service.
_LOCK_SECONDS = 0.5
_LOOK_SECONDS = 0.02

# No telemetry, no check for updates, no downloads for a run. Flower reads these variables when it is imported.
FLOWER_SWITCHES = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def find_marked(variable: str, mark: str) -> list[int]:
    """Return the processes whose environment has `variable=mark`, even if they moved to another session.

    Processes of other users are not found. On a system without /proc, none are found.
    """
    wanted = f"{variable}={mark}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if wanted in path.read_bytes().split(b"\0") and is_alive(int(path.parent.name)):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return sorted(found)


def end_marked(variable: str, mark: str, *, grace: float = 5.0) -> list[int]:
    """End the marked processes by SIGTERM, after `grace` seconds by SIGKILL; return those that were running."""
    there = find_marked(variable, mark)
    for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, grace)):
        end = time.monotonic() + seconds
        for pid in find_marked(variable, mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        while find_marked(variable, mark) and time.monotonic() < end:
            time.sleep(0.05)
    return there


def is_alive(pid: int) -> bool:
    """Return whether a process runs; a zombie, which its parent has not reaped yet, does not (`proc_pid_stat(5)`)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[0] not in "ZX"


class AlreadyRunsError(RuntimeError):
    """Another process holds the file.

    Attributes:
        pid: id of that process; None if it has not written it yet.
    """

    def __init__(self, path: Path, pid: int | None) -> None:
        """Name the file and the process that holds it."""
        super().__init__(f"{path} is held by {'another process' if pid is None else f'process {pid}'}")
        self.pid = pid


@dataclass(frozen=True)
class PidFile:
    """A file with a service's process id, locked while the process runs; the system releases a killed one's lock."""

    path: Path

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Write this process's id and hold the lock for as long as the block lasts.

        Raises:
            AlreadyRunsError: if another process holds it.
            PermissionError: if the file belongs to another user.
        """
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        with open(descriptor, "r+b", buffering=0) as file:
            end = time.monotonic() + _LOCK_SECONDS
            while not _try_lock(file, fcntl.LOCK_EX):
                if time.monotonic() >= end:
                    raise AlreadyRunsError(self.path, _parse_pid(file.read()))
                time.sleep(0.05)
            file.truncate(0)
            file.write(f"{os.getpid()}\n".encode())
            try:
                yield
            finally:
                file.truncate(0)

    def read(self) -> int | None:
        """Return the id of the process that holds the file, None if none does.

        Raises:
            PermissionError: if the file belongs to another user; only that user can read it.
        """
        try:
            with self.path.open("rb") as file:
                said: int | None = None
                while not _try_lock(file, fcntl.LOCK_SH):
                    file.seek(0)
                    # The same id twice: a process that has just taken the lock may not have replaced an older id yet.
                    before, said = said, _parse_pid(file.read())
                    if said is not None and said == before:
                        return said
                    time.sleep(_LOOK_SECONDS)
                return None
        except (FileNotFoundError, NotADirectoryError):
            return None


def _try_lock(file: IO[bytes], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _parse_pid(content: bytes) -> int | None:
    return int(content) if content.strip().isdigit() else None
