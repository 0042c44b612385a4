"""Flower's own processes on this machine's loopback, for tests, benchmarks and experiments.

They use no TLS and no authentication, so they must not be reachable from a network.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ept_fed.services.processes import FLOWER_SWITCHES, find_marked

__all__ = ["Loopback", "LoopbackError", "find_free_port"]

_HOST = "127.0.0.1"
_MARK = "EPT_FED_LOOPBACK"
_LOG_TAIL = 4000


class LoopbackError(RuntimeError):
    """Raised if a Flower process fails; the text contains the end of every log."""


class Loopback:
    """Starts a SuperLink, SuperNodes and runs, each with a log in `folder`, and ends all of them on exit.

    The processes use the environment of this interpreter, and import ept-fed from the checkout or installation that
    contains this module.
    """

    def __init__(self, folder: Path) -> None:
        """Use an existing folder for the logs and Flower's home."""
        self.folder = folder
        self._mark = uuid.uuid4().hex
        self._running: list[subprocess.Popen[bytes]] = []
        self._superlink = ""
        here = str(Path(__file__).resolve().parents[2])
        self._environment = {
            **os.environ,
            **FLOWER_SWITCHES,
            "FLWR_HOME": str(folder / "flwr-home"),
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))),
            "PYTHONPATH": os.pathsep.join(part for part in (here, os.environ.get("PYTHONPATH")) if part),
            _MARK: self._mark,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start_superlink(self, *, simulation: bool = False, limit: float = 60.0) -> None:
        """Start a SuperLink on a free port and make it the default of `flwr`.

        Args:
            simulation: use Ray's virtual nodes instead of SuperNodes.
            limit: maximum time until the SuperLink answers, in seconds.

        Raises:
            LoopbackError: if the SuperLink does not answer within `limit` seconds.
        """
        port = find_free_port()
        self._superlink = f"{_HOST}:{port}"
        home = Path(self._environment["FLWR_HOME"])
        home.mkdir(exist_ok=True)
        connection = (
            f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "{self._superlink}"\ninsecure = true\n'
        )
        (home / "config.toml").write_text(connection)
        options = ("--host", _HOST, "--port", str(port), *["--simulation"] * simulation)
        self._start("superlink", "flower-superlink", "--insecure", *options)
        end = time.monotonic() + limit
        while not _is_healthy(self._superlink):
            if time.monotonic() >= end:
                raise LoopbackError(f"the SuperLink does not answer after {limit:g} s\n{self.logs()}")
            time.sleep(0.1)

    def start_supernode(self, site: str) -> None:
        """Start a SuperNode for a site."""
        options = (
            "--superlink",
            self._superlink,
            "--port",
            str(find_free_port()),
            "--node-config",
            f"site={_quote(site)}",
        )
        self._start(f"supernode-{site}", "flower-supernode", "--insecure", *options)

    def run_app(self, app: Path, run_config: Mapping[str, str], *options: str, limit: float) -> Mapping[str, Any]:
        """Run an app folder with `flwr run`, wait for its end, and return the entry of `flwr ls` for the run.

        Raises:
            LoopbackError: if the run does not complete within `limit` seconds.
        """
        settings = " ".join(f"{key}={_quote(value)}" for key, value in run_config.items())
        started = self._ask("run", str(app), "here", "--run-config", settings, *options)
        # Polling `flwr ls` would use a whole core. Following the log uses almost none, and it ends with the run.
        follower = self._start("run", "flwr", "log", started["run-id"], "here", "--stream")
        try:
            follower.wait(limit)
        except subprocess.TimeoutExpired as error:
            raise LoopbackError(f"the run has not ended after {limit:g} s\n{self.logs()}") from error
        run: Mapping[str, Any] = self._ask("ls", "here", "--run-id", started["run-id"])["runs"][0]
        if run["status"] != "finished:completed":
            raise LoopbackError(f"the run is {run['status']}: {run.get('status-details')}\n{self.logs()}")
        return run

    def logs(self) -> str:
        """Return the end of every log."""
        paths = sorted(self.folder.glob("*.log"))
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-_LOG_TAIL:]}" for path in paths)

    def stop(self) -> None:
        """End every process started here and all its descendants, also those in other sessions."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in self._running:
                try:
                    os.killpg(process.pid, number)
                except ProcessLookupError:
                    continue
            end = time.monotonic() + 5
            while time.monotonic() < end and any(process.poll() is None for process in self._running):
                time.sleep(0.05)
        end = time.monotonic() + 5
        while (left := self.descendants()) and time.monotonic() < end:
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.05)

    def descendants(self) -> list[int]:
        """Return the processes that still run; on a system without /proc, the list is always empty."""
        return find_marked(_MARK, self._mark)

    def _start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )
        self._running.append(process)
        return process

    def _ask(self, *words: str) -> Any:
        command = ["flwr", *words, "--format", "json"]
        done = subprocess.run(
            command, cwd=self.folder, env=self._environment, capture_output=True, text=True, check=False, timeout=120
        )
        if done.returncode:
            raise LoopbackError(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}\n{self.logs()}")
        return json.loads(done.stdout)


def _quote(value: str) -> str:
    """Return a value as a TOML string, the format of Flower's settings on the command line."""
    return json.dumps(value, ensure_ascii=False)


def find_free_port() -> int:
    """Return a port of this machine on which no process listens now."""
    with socket.socket() as listener:
        listener.bind((_HOST, 0))
        return int(listener.getsockname()[1])


def _is_healthy(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/health", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
