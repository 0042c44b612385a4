"""A whole deployment on this machine's loopback: kits, server, proxy, sites, as processes of the command line.

Images are generated, the backbone is a toy with random weights: nothing here says anything about a model. Everything
else is what a consortium would run: its authority, TLS, node keys, the proxy, the workers and their gates.
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
from server.provisioning.provision import provision
from simulations.deployment.loopback import find_free_port

__all__ = ["Rehearsal", "RehearsalError"]

_MARK = "EPT_FED_REHEARSAL"
_LIMIT = 180.0
_LOG_TAIL = 3000


class RehearsalError(RuntimeError):
    """A process that does not do what it was started for; the text holds the end of every log."""


class Rehearsal:
    """Starts what a consortium would, each command a process of its own, and ends everything on leaving."""

    def __init__(self, sites: int, *, keep: bool = False, patients: int = 16) -> None:
        """Provision a federation of generated sites into a temporary folder.

        Args:
            sites: how many; site-1, site-2, …
            keep: leave the folder.
            patients: generated patients per class, over all sites.

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
        """Write federation.yaml and provision kits from it; `more` are other settings of it."""
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
        """Write a site's site.yaml: generated images, and where its processes listen."""
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
        """Copy a site's kit as it was handed out, with a port of its own, for somebody to tamper with."""
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
            "model": {"backbone": "test_vit", "image_size": 64, "prompt_length": 3, "tokens": 1},
            "training": {"batch_size": 4},
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
        # A killed server's may still be there.
        self.wait_for(lambda: ready.exists() and ready.stat().st_mtime >= before, "the server to be ready")

    def start_site(self, name: str, **environment: str) -> None:
        """Run `ept-fed site start`; `wait_online` waits for it."""
        self.start(name, "site", "start", str(self.site_kit(name)), **environment)

    def start_all(self) -> None:
        """Start the server and every site, and wait until all are online."""
        self.start_server()
        for name in self.names:
            self.start_site(name)
        self.wait_online(self.names)

    def wait_online(self, names: Sequence[str]) -> None:
        """Wait until SuperLink sees the nodes of these sites."""

        def online() -> bool:
            sites = describe_server(self.server.folder)["sites"]
            return all(sites[name]["status"] == "online" for name in names)

        self.wait_for(online, f"{', '.join(names)} to be online", every=0.5)

    def run(self, experiment: Path, *options: str) -> tuple[int, str]:
        """Run `ept-fed server run` to its end; return exit code and output."""
        return self.ask("server", "run", str(experiment), "--kit", str(self.server.folder), *options)

    def ask(self, *words: str, **environment: str) -> tuple[int, str]:
        """Run a command of ept-fed to its end; return exit code and output, errors included.

        Args:
            words: of the command.
            environment: variables that it sees besides.

        Raises:
            RehearsalError: if it does not end in time.
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
        """Start a command of ept-fed that goes on, with a log of its own; arguments as for `ask`."""
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
        """End a command, by default as an operator would, and return its exit code."""
        process = self._running.pop(name)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        return process.wait(60)

    def wait_for(self, condition: Callable[[], bool], what: str, *, every: float = 0.05, limit: float = _LIMIT) -> None:
        """Wait until a condition holds.

        Raises:
            RehearsalError: if it does not in time, or a process that should go on has ended.
        """
        end = time.monotonic() + limit
        while not condition():
            dead = [name for name, process in self._running.items() if process.poll() is not None]
            if dead or time.monotonic() >= end:
                ended = f"; {', '.join(dead)} ended" if dead else ""
                raise RehearsalError(f"waited in vain for {what}{ended}\n{self.logs()}")
            time.sleep(every)

    def logs(self) -> str:
        """Return the end of every log."""
        paths = sorted(path for path in self.folder.rglob("*.log") if path.is_file())
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-_LOG_TAIL:]}" for path in paths)

    def stop(self) -> None:
        """End everything: sites, then the server, and whatever is left of them."""
        for name in [*(name for name in self._running if name != "server"), "server"]:
            if name in self._running:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.end(name)
        end_marked(_MARK, self._mark)
        end_proxy(self.kits / "server" / "state" / "logs" / "proxy")

    def descendants(self) -> list[int]:
        """Return the processes that are still there, the proxy's included."""
        return find_marked(_MARK, self._mark) + self.proxy_processes()

    def sockets(self) -> list[Path]:
        """Return the sites' sockets that are there."""
        return [path for name in self.names for path in self.site_kit(name).glob("run/*.sock*")]

    def proxy_processes(self) -> list[int]:
        """Return nginx's processes, which hide the environment that they were started with."""
        folder, found = self.kits / "server" / "state" / "logs" / "proxy", []
        for link in Path("/proc").glob("[0-9]*/cwd"):
            with contextlib.suppress(OSError):
                if link.resolve() == folder.resolve() and is_alive(int(link.parent.name)):
                    found.append(int(link.parent.name))
        return sorted(found)

    def find(self, kit: Path, program: str) -> list[int]:
        """Return processes that were started from a kit and whose command line names a program."""
        found = []
        for pid in find_marked(_MARK, self._mark):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
                environment = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
                if program in words and str(kit) in words + environment:
                    found.append(pid)
        return found

    def kill(self, pids: Sequence[int]) -> None:
        """End processes as a power failure would."""
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _leave(_signal: int, _frame: FrameType | None) -> None:
    """End this process through every `with`: whoever is told to end must not leave a federation behind."""
    raise SystemExit(128 + signal.SIGTERM)
