"""Child processes of a service: started with a mark, watched, and ended with everything that they started in turn."""

import contextlib
import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ept_fed.artefacts import write_text

__all__ = ["FLOWER_SWITCHES", "PidFile", "end_marked", "find_marked", "start_time"]

# No telemetry, no question for updates, nothing downloaded for a run (Flower reads them when it is imported).
FLOWER_SWITCHES = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def find_marked(variable: str, mark: str) -> list[int]:
    """Return the processes whose environment has `variable=mark`, whatever session they moved to.

    Those of other users are not seen, and on a system without /proc none is.
    """
    wanted = f"{variable}={mark}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if wanted in path.read_bytes().split(b"\0") and start_time(int(path.parent.name)) is not None:
                found.append(int(path.parent.name))
        except OSError:
            continue
    return sorted(found)


def end_marked(variable: str, mark: str, *, grace: float = 5.0) -> list[int]:
    """End the marked processes, by SIGTERM and after `grace` seconds by SIGKILL; return those that were there."""
    there = find_marked(variable, mark)
    for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, grace)):
        end = time.monotonic() + seconds
        for pid in find_marked(variable, mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        while find_marked(variable, mark) and time.monotonic() < end:
            time.sleep(0.05)
    return there


def start_time(pid: int) -> str | None:
    """Return when a process started, in the system's own ticks; None if it is gone, or dead and not yet fetched.

    Two processes of one number differ in it. (`proc_pid_stat(5)`, fields 3 and 22)
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


@dataclass(frozen=True)
class PidFile:
    """A file that says which process a service is; one left by a killed service is told by its start time."""

    path: Path

    def write(self) -> None:
        """Name this process."""
        write_text(self.path, json.dumps({"pid": os.getpid(), "started": start_time(os.getpid())}) + "\n")

    def read(self) -> int | None:
        """Return the process that the file names, if it still lives."""
        try:
            document: Any = json.loads(self.path.read_text(encoding="utf-8"))
            pid, started = int(document["pid"]), document["started"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return pid if started is not None and start_time(pid) == started else None

    def remove(self) -> None:
        """Remove the file if it names this process."""
        if self.read() == os.getpid():
            self.path.unlink(missing_ok=True)
