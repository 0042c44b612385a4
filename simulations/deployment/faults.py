"""Faults of a deployment on this machine's loopback: how to cause each of them, and the required outcome.

Each fault restores the deployment afterwards, so that several faults can follow each other in one rehearsal.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import yaml

from ept_fed.pki.keys import new_key, serialize_openssh_private
from ept_fed.services.supervisor import child_environment
from server.deployment.run_state import read_json_file
from server.provisioning.authority import Authority
from simulations.deployment.loopback_deployment import Rehearsal, RehearsalError

__all__ = ["FAULTS", "Fault", "Seen"]

_ROUNDS = 2
_SHIFTED_CLOCK = """
import datetime, time
_real, _now = datetime.datetime, time.time
class _Shifted(_real):
    @classmethod
    def now(cls, tz=None):
        return _real.now(tz) + datetime.timedelta(seconds={seconds})
datetime.datetime = _Shifted
time.time = lambda: _now() + {seconds}
"""


@dataclass(frozen=True)
class Seen:
    """The observed outcome of a fault.

    Attributes:
        status: done or failed, for the run during which the fault occurred; refused if a process did not start.
        says: the messages that the operator sees, one sentence each.
        seconds: time from the fault to full recovery.
        lost: results that are missing because of the fault.
    """

    status: str
    says: tuple[str, ...]
    seconds: float
    lost: str = "nothing"


@dataclass(frozen=True)
class Fault:
    """A fault and its required outcome.

    Attributes:
        cause: causes the fault, waits for the recovery, and returns the observed outcome.
        status: the required status of the run.
        says: phrases of which at least one must appear in the operator's messages; if empty, none is required.
        lossless: whether all results must be complete despite the fault.
        quick: whether the fault has its effect without a run.
        mounts: whether the fault needs the permission to mount a disk.
    """

    cause: Callable[[Rehearsal], Seen]
    status: str
    says: tuple[str, ...] = ()
    lossless: bool = False
    quick: bool = False
    mounts: bool = False

    def is_survived(self, seen: Seen) -> bool:
        """Return whether the observed outcome is the required one."""
        told = " ".join(seen.says)
        as_told = not self.says or any(word in told for word in self.says)
        return seen.status == self.status and as_told and (not self.lossless or seen.lost == "nothing")


def _submit(rehearsal: Rehearsal, name: str, *, deadline: float = 90.0, quorum: int | None = None) -> Path:
    """Submit a run whose training takes some seconds, and return its folder."""
    experiment = rehearsal.write_experiment(
        name,
        training={"epochs": 3, "prompt_lr": 0.01},
        federation={"rounds": _ROUNDS, "deadline": deadline, "grace": 5.0, "quorum": quorum},
        data={"shots": None},
    )
    code, said = rehearsal.run(experiment, "--detach")
    if code:
        raise RehearsalError(said)
    return rehearsal.server.runs / name


def _wait_for_training(rehearsal: Rehearsal, run: str) -> None:
    """Wait until site-1 has started to train for a run."""
    log = rehearsal.site_kit("site-1") / "logs" / "worker" / "worker.log"
    begun = re.compile(rf"round \d+ of {re.escape(run)}-[0-9a-f]+: training begins")
    rehearsal.wait_for(lambda: begun.search(_read(log)) is not None, "training")


def _end(rehearsal: Rehearsal, folder: Path) -> str:
    """Wait for the end of a run, and return its status."""
    rehearsal.wait_until_ended(limit=400)
    return str(read_json_file(folder, "result.json").get("status", "failed"))


def _refusals(folder: Path) -> list[str]:
    path = folder / "rounds.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [f"{refusal['site']} {refusal['reason']}" for line in lines for refusal in line["refused"]]


def _left_out(folder: Path) -> tuple[str, ...]:
    left_out = read_json_file(folder, "result.json").get("left_out", {})
    return tuple(f"{name} is left out: {reason}" for name, reason in left_out.items())


def _without(rehearsal: Rehearsal) -> Seen:
    return _during_training("none", lambda _rehearsal: None)(rehearsal)


def _during_training(name: str, fault: Callable[[Rehearsal], None]) -> Callable[[Rehearsal], Seen]:
    def act(rehearsal: Rehearsal) -> Seen:
        folder = _submit(rehearsal, name)
        _wait_for_training(rehearsal, folder.name)
        started = time.monotonic()
        fault(rehearsal)
        return _tell(rehearsal, folder, started)

    return act


def _tell(rehearsal: Rehearsal, folder: Path, started: float) -> Seen:
    status = _end(rehearsal, folder)
    refused = _refusals(folder)
    lost = f"a site's part in {len(refused)} round(s)" if refused else "nothing"
    return Seen(status, tuple(dict.fromkeys(refused)), time.monotonic() - started, lost)


def _kill_supernode(rehearsal: Rehearsal) -> None:
    rehearsal.kill(rehearsal.find(rehearsal.site_kit("site-1"), "client.deployment.supernode"))


def _kill_worker(rehearsal: Rehearsal) -> None:
    rehearsal.kill(rehearsal.find(rehearsal.site_kit("site-1"), "client.worker.process"))


def _restart_proxy(rehearsal: Rehearsal) -> None:
    rehearsal.kill(rehearsal.proxy_processes())


def _kill_server(rehearsal: Rehearsal) -> Seen:
    """Kill all server processes after the first round; the resumed run must have the results of an undisturbed run."""
    folder = _submit(rehearsal, "server")
    rehearsal.wait_for((folder / "checkpoints").exists, "the first round to end", every=0.2)
    started = time.monotonic()
    rehearsal.end("server", signal.SIGKILL)
    rehearsal.kill([*rehearsal.find(rehearsal.server.folder, "flower-superlink"), *rehearsal.proxy_processes()])
    rehearsal.kill(rehearsal.find(rehearsal.server.folder, "flwr"))
    rehearsal.start_server()
    code, said = rehearsal.ask("server", "run", "--resume", "--kit", str(rehearsal.server.folder))
    seconds = time.monotonic() - started
    cut = "was interrupted; continue with: ept-fed server run --resume"
    seen = (cut,) if cut in (rehearsal.folder / "server.log").read_text() else ()
    missing = _ROUNDS - len((folder / "rounds.jsonl").read_text().splitlines())
    lost = [f"{missing} rounds"] if missing else []
    undisturbed = rehearsal.server.runs / "none"
    if not undisturbed.exists():
        _without(rehearsal)
    if _refusals(folder) or _refusals(undisturbed):
        lost.append("the comparison with the run without a fault, because a site was refused in one of them")
    elif _prompts(folder) != _prompts(undisturbed):
        lost.append("the prompts differ from those of the run without a fault")
    status = "done" if code == 0 else said.strip()[-200:]
    return Seen(status, (*seen, *_refusals(folder)), seconds, "; ".join(lost) or "nothing")


def _prompts(folder: Path) -> dict[str, dict[str, bytes]]:
    from safetensors.numpy import load_file

    return {
        path.name: {name: tensor.tobytes() for name, tensor in load_file(path).items()}
        for path in sorted((folder / "prompts").iterdir())
    }


def _silent_site(rehearsal: Rehearsal) -> Seen:
    folder = _submit(rehearsal, "silent", deadline=20.0, quorum=1)
    _wait_for_training(rehearsal, folder.name)
    stopped = rehearsal.find(rehearsal.site_kit("site-1"), "client.worker.process")
    started = time.monotonic()
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        return _tell(rehearsal, folder, started)
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)


def _full_disk(rehearsal: Rehearsal) -> Seen:
    """Fill the disk of site-1's state while the site trains, and free the space after the site refused the round."""
    with _small_disk(rehearsal, "site-1") as state:
        folder = _submit(rehearsal, "disk", quorum=1)
        _wait_for_training(rehearsal, folder.name)
        started = time.monotonic()
        filler = state / "filler"
        with filler.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                pass
        log = rehearsal.site_kit("site-1") / "logs" / "node" / "supernode.log"
        rehearsal.wait_for(lambda: "disk is full" in _read(log), "the refusal", every=0.2)
        filler.unlink()
        return _tell(rehearsal, folder, started)


@contextmanager
def _small_disk(rehearsal: Rehearsal, name: str) -> Iterator[Path]:
    """Run a site with its state on a disk of 2 MB; this needs the permission to mount."""
    state = rehearsal.site_kit(name) / "state"
    kept = state.with_name("state-kept")
    with ExitStack() as back:
        rehearsal.end(name)
        back.callback(rehearsal.wait_online, rehearsal.names)
        back.callback(rehearsal.start_site, name)
        shutil.copytree(state, kept)
        back.callback(shutil.rmtree, kept)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "tmpfs", str(state)], check=True)
        back.callback(shutil.copytree, kept, state, dirs_exist_ok=True)
        back.callback(subprocess.run, ["umount", str(state)], check=True)
        shutil.copytree(kept, state, dirs_exist_ok=True)
        rehearsal.start_site(name)
        back.callback(_keep, state, kept)
        back.callback(rehearsal.end, name)
        rehearsal.wait_online(rehearsal.names)
        yield state


def _keep(state: Path, kept: Path) -> None:
    shutil.rmtree(kept)
    shutil.copytree(state, kept)


def _read(log: Path) -> str:
    return log.read_text(errors="replace") if log.exists() else ""


def _other_backbone(*, permitted: bool) -> Callable[[Rehearsal], Seen]:
    """Give site-1 other weights of the same architecture, which its policy permits or refuses."""

    def act(rehearsal: Rehearsal) -> Seen:
        import timm
        from safetensors.torch import save_file

        from ept_fed.models.backbones import create_backbone

        name = "backbone-permitted" if permitted else "backbone"
        weights = rehearsal.folder / f"{name}.safetensors"
        save_file(timm.create_model("test_vit", num_classes=0).state_dict(), weights)
        digest = create_backbone("test_vit", weights=str(weights), image_size=64, seed=0).digest

        def change() -> None:
            rehearsal.fill_site("site-1", weights=str(weights))
            path = rehearsal.site_kit("site-1") / "policy.yaml"
            policy = yaml.safe_load(path.read_text())
            # "first" permits only the backbone that the site has tuned before.
            policy["incoming"]["backbone"] = [digest] if permitted else "first"
            path.write_text(yaml.safe_dump(policy))

        with _other_site(rehearsal, "site-1", change):
            started = time.monotonic()
            folder = _submit(rehearsal, name)
            status = _end(rehearsal, folder)
            says = () if status == "done" else (str(read_json_file(folder, "result.json").get("ended")),)
            lost = "that site's part" if status == "done" else "nothing"
            return Seen(status, (*says, *_left_out(folder)), time.monotonic() - started, lost)

    return act


def _other_code(rehearsal: Rehearsal) -> Seen:
    """Run site-1 temporarily with another version of the code, like a site that was not updated."""
    environment = _customise(rehearsal.folder / "old-code", "import ept_fed; ept_fed.__version__ = '0.0.9'")
    with ExitStack() as back:
        rehearsal.end("site-1")
        back.callback(rehearsal.wait_online, rehearsal.names)
        back.callback(rehearsal.start_site, "site-1")
        rehearsal.start_site("site-1", **environment)
        back.callback(rehearsal.end, "site-1")
        rehearsal.wait_online(rehearsal.names)
        started = time.monotonic()
        folder = _submit(rehearsal, "code")
        status = _end(rehearsal, folder)
        return Seen(status, _left_out(folder), time.monotonic() - started, "that site's part")


@contextmanager
def _other_site(rehearsal: Rehearsal, name: str, change: Callable[[], None]) -> Iterator[None]:
    """Run a site temporarily with changed files."""
    kit = rehearsal.site_kit(name)
    before = {path: (kit / path).read_bytes() for path in ("site.yaml", "policy.yaml")}
    for swap in (change, lambda: None):
        rehearsal.end(name)
        for path, content in before.items():
            (kit / path).write_bytes(content)
        swap()
        rehearsal.start_site(name)
        rehearsal.wait_online(rehearsal.names)
        if swap is change:
            yield


def _refused_node(what: str, damage: Callable[[Rehearsal, Path], dict[str, str]]) -> Callable[[Rehearsal], Seen]:
    """Start a SuperNode with a damaged copy of site-1's kit, and collect its log and the output of `site check`."""

    def act(rehearsal: Rehearsal) -> Seen:
        kit = rehearsal.copy_site("site-1", what)
        environment = damage(rehearsal, kit)
        started = time.monotonic()
        log = kit / "logs" / "node" / "supernode.log"
        rehearsal.start(what, "site", "start", str(kit), "--node-only", **environment)
        try:
            rehearsal.wait_for(lambda: any(word in _read(log) for word in _ENDED), "the refusal", every=0.2)
            seconds = time.monotonic() - started
        finally:
            rehearsal.end(what)
        wanted = ("code:", "CERTIFICATE_VERIFY_FAILED")
        lines = [line.strip()[-160:] for line in _read(log).splitlines() if any(word in line for word in wanted)]
        _, said = rehearsal.ask("site", "check", str(kit), "--json", **environment)
        failed = [check for check in json.loads(said)["checks"] if check["state"] == "failed"]
        checks = [f"check: {check['name']} {check['found']}" for check in failed if check["name"] in _CHECKED]
        return Seen("refused", (*lines[:1], *checks), seconds)

    return act


_CHECKED = ("clock", "server", "registration")
# A SuperNode that is refused because of its clock logs only the second of these.
_ENDED = ("Exit Code", "terminated gracefully")


def _unregistered_key(_rehearsal: Rehearsal, kit: Path) -> dict[str, str]:
    (kit / "keys" / "node").write_bytes(serialize_openssh_private(new_key()))
    return {}


def _foreign_authority(_rehearsal: Rehearsal, kit: Path) -> dict[str, str]:
    Authority(kit / "foreign", "another", datetime.now(UTC), 30)
    shutil.copy(kit / "foreign" / "ca.crt", kit / "tls" / "ca.crt")
    return {}


def _clock(seconds: int) -> Callable[[Rehearsal, Path], dict[str, str]]:
    """Return a function that shifts the clock of a site's Python processes."""

    def shift(_rehearsal: Rehearsal, kit: Path) -> dict[str, str]:
        return _customise(kit / "clock", _SHIFTED_CLOCK.format(seconds=seconds))

    return shift


def _customise(folder: Path, code: str) -> dict[str, str]:
    """Return an environment in which every Python process runs `code` at its start."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": os.pathsep.join([str(folder), child_environment()["PYTHONPATH"]])}


def _expired_server(rehearsal: Rehearsal) -> Seen:
    """Try to start the server with a shifted clock, at a time when its certificates have expired."""
    rehearsal.end("server")
    started = time.monotonic()
    later = _clock(400 * 24 * 3600)(rehearsal, rehearsal.server.folder)
    code, said = rehearsal.ask("server", "start", str(rehearsal.server.folder), **later)
    seconds = time.monotonic() - started
    rehearsal.start_server()
    rehearsal.wait_online(rehearsal.names)
    problems = tuple(line.strip(" *") for line in said.splitlines() if line.startswith("  *"))
    return Seen("refused" if code == 2 else f"exit code {code}", problems, seconds)


_GONE = ("went offline", "did not answer", "is not online")
FAULTS: dict[str, Fault] = {
    "no fault": Fault(_without, "done", lossless=True),
    "SuperNode killed while the site trains": Fault(_during_training("supernode", _kill_supernode), "done", _GONE),
    "worker killed while it trains": Fault(_during_training("worker", _kill_worker), "done", ("does not answer",)),
    "proxy killed while sites train": Fault(_during_training("proxy", _restart_proxy), "done", lossless=True),
    "server, SuperLink and proxy killed after round 1": Fault(_kill_server, "done", ("interrupted",), lossless=True),
    "a site falls silent (deadline 20 s, quorum 1)": Fault(_silent_site, "done", ("did not answer in time",)),
    "a site's disk is full for a while (quorum 1)": Fault(_full_disk, "done", ("disk is full",), mounts=True),
    "a node with a key that is not registered": Fault(
        _refused_node("unregistered", _unregistered_key), "refused", ("Failed to activate",), quick=True
    ),
    "a kit with another consortium's authority": Fault(
        _refused_node("foreign", _foreign_authority), "refused", ("CERTIFICATE_VERIFY_FAILED",), quick=True
    ),
    "a site's clock is six minutes behind": Fault(
        _refused_node("behind", _clock(-360)), "refused", ("clock",), quick=True
    ),
    "a site's clock is a minute ahead": Fault(_refused_node("ahead", _clock(60)), "refused", ("clock",), quick=True),
    "the server's certificates have ended": Fault(_expired_server, "refused", ("ended",), quick=True),
    "one of two sites has another backbone, which its policy refuses": Fault(
        _other_backbone(permitted=False), "done", ("incoming.backbone",)
    ),
    "one of two sites has another backbone, which its policy permits": Fault(
        _other_backbone(permitted=True), "failed", ("no majority",)
    ),
    "one of two sites has another version of the code": Fault(_other_code, "done", ("code version", "code:")),
}
