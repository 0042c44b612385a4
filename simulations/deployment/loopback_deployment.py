"""A complete deployment on this machine's loopback: kits, server, proxy and sites, as processes of the command line.

The images are generated and the backbone is a small one with random weights, so the results are no measure of a model.
Everything else is the same as in a consortium: its authority, TLS, node keys, the proxy, the workers and their gates.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import yaml

from ept_fed.data.sources.phantom_structures import STRUCTURES
from ept_fed.services.processes import end_marked, find_marked, is_alive
from ept_fed.services.supervisor import child_environment
from server.deployment.proxy import end_proxy, find_nginx
from server.deployment.server_kit import ServerKit, open_server_kit
from server.deployment.status import describe_server
from server.deployment.submit import connect
from server.provisioning.provision import provision
from simulations.deployment.flower_processes import find_free_port

__all__ = ["Rehearsal", "RehearsalError"]

_MARK = "EPT_FED_REHEARSAL"
_LIMIT = 180.0
_LOG_TAIL = 3000


class RehearsalError(RuntimeError):
    """Raised if a process of the rehearsal fails; the text contains the end of every log."""


class Rehearsal:
    """Starts the commands of a consortium, each as a process of its own, and ends all of them on exit."""

    def __init__(self, sites: int, *, keep: bool = False, patients: int = 16) -> None:
        """Provision a federation of generated sites into a temporary folder.

        Args:
            sites: number of sites; their names are site-1, site-2, …
            keep: do not delete the folder.
            patients: number of generated patients per class, over all sites.

        Raises:
            InputRefusedError: if nginx is not installed.
        """
        find_nginx()
        self.names = tuple(f"site-{number + 1}" for number in range(sites))
        self.folder = Path(tempfile.mkdtemp(prefix="ept-fed-"))
        self._keep, self._patients = keep, patients
        self._mark = uuid.uuid4().hex
        self._environment = child_environment(**{_MARK: self._mark})
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._before: Any = signal.SIG_DFL
        self.port = find_free_port()
        self.write_federation()
        for name in self.names:
            self.fill_site(name)

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGTERM, _leave)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        signal.signal(signal.SIGTERM, self._before)
        if not self._keep:
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def kits(self) -> Path:
        """Folder of all kits."""
        return self.folder / "kits"

    @property
    def server(self) -> ServerKit:
        """The server's kit."""
        return open_server_kit(self.kits / "server")

    def site_kit(self, name: str) -> Path:
        """Return a site's kit."""
        return self.kits / "sites" / name

    def write_federation(self, **more: Any) -> None:
        """Write federation.yaml and provision kits from it; `more` contains additional settings."""
        federation = {
            "name": "rehearsal",
            "server": {"host": "localhost", "port": self.port},
            "sites": [{"name": name} for name in self.names],
            **more,
        }
        path = self.folder / "federation.yaml"
        path.write_text(yaml.safe_dump(federation))
        provision(path, self.kits, now=datetime.now(UTC))

    def fill_site(self, name: str, **model: Any) -> None:
        """Write a site's site.yaml with generated images and a free port; `model` changes its model settings."""
        phantoms = {"source": "phantoms", "phantom_sites": len(self.names), "patients_per_class": self._patients}
        settings = {
            "site": name,
            "data": {**phantoms, "sites": [name]},
            "model": {"device": "cpu", **model},
            "worker": {"threads": 1, "hold_minutes": 0.02},
            "node": {"runtime_port": find_free_port()},
        }
        (self.site_kit(name) / "site.yaml").write_text(yaml.safe_dump(settings))

    def copy_site(self, name: str, copy: str) -> Path:
        """Copy a site's kit in its provisioned state, with a port of its own, so that the copy can be damaged."""
        kit = self.folder / copy
        shutil.copytree(self.site_kit(name), kit, ignore=shutil.ignore_patterns("run", "state", "logs"))
        shutil.rmtree(kit / "node", ignore_errors=True)
        settings = yaml.safe_load((kit / "site.yaml").read_text())
        (kit / "site.yaml").write_text(yaml.safe_dump({**settings, "node": {"runtime_port": find_free_port()}}))
        return kit

    def write_experiment(self, name: str, **sections: Mapping[str, Any]) -> Path:
        """Write an experiment of two short rounds; `sections` change settings."""
        settings: dict[str, Any] = {
            "name": name,
            "data": {
                "source": "phantoms",
                "phantom_sites": len(self.names),
                "patients_per_class": self._patients,
                "shots": 4,
                "validation_shots": 4,
                "validation_fraction": 0.2,
                "classes": list(STRUCTURES),
            },
            "model": {
                "backbone": "test_vit",
                "image_size": 64,
                "prompt_length": 3,
                "tokens": 1,
                "prompt_layers": "deep",
            },
            "training": {"batch_size": 4, "epochs": 1, "head": "trained", "token_lr": 0.003, "head_lr": 0.002},
            "federation": {"rounds": 2, "deadline": 60.0, "grace": 10.0},
            "evaluation": {"baselines": []},
        }
        for section, changes in sections.items():
            settings[section] = {**settings.get(section, {}), **changes}
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings))
        return path

    def start_server(self) -> None:
        """Run `ept-fed server start`, and wait until the sites are registered."""
        ready, before = self.server.state / "ready.json", time.time()
        self.start("server", "server", "start", str(self.server.folder))
        # The file of a killed server may still exist.
        self.wait_for(lambda: ready.exists() and ready.stat().st_mtime >= before, "the server to be ready")

    def start_site(self, name: str, **environment: str) -> None:
        """Run `ept-fed site start` without waiting; `wait_online` waits for the site."""
        self.start(name, "site", "start", str(self.site_kit(name)), **environment)

    def start_all(self) -> None:
        """Start the server and every site, and wait until all are online."""
        self.start_server()
        for name in self.names:
            self.start_site(name)
        self.wait_online(self.names)

    def wait_online(self, names: Sequence[str]) -> None:
        """Wait until the SuperLink reports the nodes of these sites as online."""

        def online() -> bool:
            sites = describe_server(self.server.folder)["sites"]
            return all(sites[name]["status"] == "online" for name in names)

        self.wait_for(online, f"{', '.join(names)} to be online", every=0.2)

    def run(self, experiment: Path, *options: str) -> tuple[int, str]:
        """Run `ept-fed server run` to its end, and return the exit code and the output."""
        return self.ask("server", "run", str(experiment), "--kit", str(self.server.folder), *options)

    def wait_until_ended(self, *, limit: float = _LIMIT) -> None:
        """Wait until every run has ended, which is shortly after its result is written; then another one may start."""

        def ended() -> bool:
            with connect(self.server) as control:
                return all(run.ended for run in control.runs())

        self.wait_for(ended, "the run to end", every=0.2, limit=limit)

    def ask(self, *words: str, **environment: str) -> tuple[int, str]:
        """Run a command of ept-fed to its end, and return the exit code and the output, errors included.

        Args:
            words: arguments of the command.
            environment: additional environment variables.

        Raises:
            RehearsalError: if the command does not end in time.
        """
        try:
            done = subprocess.run(
                [sys.executable, "-m", "ept_fed.cli", *words],
                cwd=self.folder,
                env={**self._environment, **environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
                timeout=_LIMIT,
            )
        except subprocess.TimeoutExpired as late:
            command = f"ept-fed {' '.join(words)}"
            raise RehearsalError(f"{command} did not end within {_LIMIT:g} s\n{self.logs()}") from late
        return done.returncode, done.stdout

    def start(self, name: str, *words: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start a long-running command of ept-fed with a log of its own; the arguments are those of `ask`."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                [sys.executable, "-m", "ept_fed.cli", *words],
                cwd=self.folder,
                env={**self._environment, **environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self._running[name]

    def end(self, name: str, number: int = signal.SIGTERM) -> int:
        """End a command, by default with SIGTERM as an operator does, and return its exit code."""
        process = self._running.pop(name)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        return process.wait(60)

    def wait_for(self, condition: Callable[[], bool], what: str, *, every: float = 0.05, limit: float = _LIMIT) -> None:
        """Wait until a condition holds.

        Raises:
            RehearsalError: if the condition does not hold in time, or if a process has ended too early.
        """
        end = time.monotonic() + limit
        while not condition():
            dead = [name for name, process in self._running.items() if process.poll() is not None]
            if dead or time.monotonic() >= end:
                ended = f"; {', '.join(dead)} ended" if dead else ""
                raise RehearsalError(f"gave up waiting for {what}{ended}\n{self.logs()}")
            time.sleep(every)

    def logs(self) -> str:
        """Return the end of every log."""
        paths = sorted(path for path in self.folder.rglob("*.log") if path.is_file())
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-_LOG_TAIL:]}" for path in paths)

    def stop(self) -> None:
        """End the sites, then the server, then all remaining processes."""
        for name in [*(name for name in self._running if name != "server"), "server"]:
            if name in self._running:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.end(name)
        end_marked(_MARK, self._mark)
        end_proxy(self.kits / "server" / "state" / "logs" / "proxy")

    def descendants(self) -> list[int]:
        """Return the processes that still run, those of the proxy included."""
        return find_marked(_MARK, self._mark) + self.proxy_processes()

    def sockets(self) -> list[Path]:
        """Return the existing sockets of all sites."""
        return [path for name in self.names for path in self.site_kit(name).glob("run/*.sock*")]

    def proxy_processes(self) -> list[int]:
        """Return the processes of nginx, found by their working folder because they hide their environment."""
        folder, found = self.kits / "server" / "state" / "logs" / "proxy", []
        for link in Path("/proc").glob("[0-9]*/cwd"):
            with contextlib.suppress(OSError):
                if link.resolve() == folder.resolve() and is_alive(int(link.parent.name)):
                    found.append(int(link.parent.name))
        return sorted(found)

    def find(self, kit: Path, program: str) -> list[int]:
        """Return the processes that were started from a kit and have `program` in their command line."""
        found = []
        for pid in find_marked(_MARK, self._mark):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
                environment = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
                if program in words and str(kit) in words + environment:
                    found.append(pid)
        return found

    def kill(self, pids: Sequence[int]) -> None:
        """End processes with SIGKILL, which has the same effect as a power failure."""
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _leave(_signal: int, _frame: FrameType | None) -> None:
    """End this process through every `with`, so that no process of the federation remains after SIGTERM."""
    raise SystemExit(128 + signal.SIGTERM)
