"""Flower's own processes on loopback: started on free ports, shown when a test fails, all gone when it ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SWITCHES = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
}


class FlowerProcesses:
    """Starts Flower's commands with this interpreter and this source tree, each with a log of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._mark = uuid.uuid4().hex
        self._running: list[subprocess.Popen[bytes]] = []
        self.environment = {
            **os.environ,
            **SWITCHES,
            "FLWR_HOME": str(folder / "flwr"),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "EPT_FED_TEST": self._mark,
        }

    def start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        self._running.append(process)

    def start_superlink(self, *options: str) -> str:
        """Start a SuperLink, make it the default of `flwr`, and return its address."""
        address = f"127.0.0.1:{free_port()}"
        host, port = address.split(":")
        self.start("superlink", "flower-superlink", "--insecure", "--host", host, "--port", port, *options)
        home = Path(self.environment["FLWR_HOME"])
        home.mkdir()
        connection = f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "{address}"\ninsecure = true\n'
        (home / "config.toml").write_text(connection)
        end = time.monotonic() + 30
        while not is_healthy(address):
            assert time.monotonic() < end, f"the SuperLink does not answer\n{self.logs()}"
            time.sleep(0.1)
        return address

    def start_supernode(self, superlink: str, site: str) -> None:
        options = ("--superlink", superlink, "--port", str(free_port()), "--node-config", f'site="{site}"')
        self.start(f"supernode-{site}", "flower-supernode", "--insecure", *options)

    def run_app(self, run_config: Mapping[str, str], *options: str, limit: float = 120.0) -> Mapping[str, str]:
        """`flwr run` this repository, wait for its end, and return what `flwr ls` says about it."""
        settings = " ".join(f"{key}={json.dumps(value)}" for key, value in run_config.items())
        started = json.loads(
            self.flwr("run", str(ROOT), "here", "--run-config", settings, "--format", "json", *options)
        )
        # Asking `flwr ls` again and again would take a whole core; following the log takes none, and ends with the run.
        self.start("run", "flwr", "log", started["run-id"], "here", "--stream")
        try:
            self._running[-1].wait(limit)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the run is not over after {limit:g} s\n{self.logs()}")
        (run,) = json.loads(self.flwr("ls", "here", "--run-id", started["run-id"], "--format", "json"))["runs"]
        return run

    def flwr(self, *words: str) -> str:
        done = subprocess.run(
            ["flwr", *words],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, f"flwr {' '.join(words)}\n{done.stdout}\n{done.stderr}\n{self.logs()}"
        return done.stdout

    def logs(self) -> str:
        texts = []
        for path in sorted(self.folder.glob("*.log")):
            texts.append(f"--- {path.name}\n{path.read_text(errors='replace')[-4000:]}")
        return "\n".join(texts)

    def stop(self) -> None:
        """End every process started here, and every one that these started, whatever session it moved to."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in self._running:
                try:
                    os.killpg(process.pid, number)
                except ProcessLookupError:
                    continue
            end = time.monotonic() + 5
            while time.monotonic() < end and any(process.poll() is None for process in self._running):
                time.sleep(0.05)
        for pid in self.marked():
            os.kill(pid, signal.SIGKILL)

    def marked(self) -> list[int]:
        """Processes that inherited this test's mark; none outside Linux, where /proc cannot be asked."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if self._mark.encode() in path.read_bytes():
                    found.append(int(path.parent.name))
            except OSError:
                continue
        return found


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def is_healthy(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/health", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.fixture
def flower(tmp_path: Path) -> Iterator[FlowerProcesses]:
    folder = tmp_path / "flower"
    folder.mkdir()
    processes = FlowerProcesses(folder)
    try:
        yield processes
    finally:
        processes.stop()
