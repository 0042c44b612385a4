"""Faults on a loopback deployment, one by one: what the operator sees, seconds until all is well, what is lost.

python -m simulations.bench_faults [NAME …]

Everything runs on this machine; times depend on what else it does. The first column is measured from the fault to the
end of the run, beside the time that the same run took without one.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ept_fed.keys import new_key, spell_openssh_private
from server.run_state import read_json_file
from server.status import describe_server
from simulations.rehearsal import Rehearsal, RehearsalError

__all__ = ["FAULTS", "Seen"]

_SITES = 2
_ROUNDS = 2


@dataclass(frozen=True)
class Seen:
    """What came of a fault: the operator's view, seconds until all was well again, and what was lost."""

    what: str
    seconds: float
    lost: str


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


def _training(rehearsal: Rehearsal, name: str) -> bool:
    code, said = rehearsal.ask("site", "status", str(rehearsal.site_kit(name)), "--json")
    return code == 0 and json.loads(said)["worker"]["activity"] == "train"


def _end(rehearsal: Rehearsal, folder: Path) -> str:
    """Wait for a run's end, and return how it ended."""

    def over() -> bool:
        return describe_server(rehearsal.server.folder)["run"]["phase"] in ("done", "failed", "stopped")

    rehearsal.wait_for(over, f"{folder.name} to end", every=0.5, limit=400)
    return str(read_json_file(folder, "result.json").get("status", "failed"))


def _refusals(folder: Path) -> list[str]:
    path = folder / "rounds.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [f"{refusal['site']} {refusal['reason']}" for line in lines for refusal in line["refused"]]


def _without(rehearsal: Rehearsal) -> Seen:
    folder = _submit(rehearsal, "none")
    rehearsal.wait_for(lambda: _training(rehearsal, "site-1"), "training", every=0.2)
    started = time.monotonic()
    status = _end(rehearsal, folder)
    return Seen(f"{status}; {'; '.join(_refusals(folder)) or 'nobody refused'}", time.monotonic() - started, "nothing")


def _during_training(name: str, fault: Callable[[Rehearsal], None]) -> Callable[[Rehearsal], Seen]:
    def act(rehearsal: Rehearsal) -> Seen:
        folder = _submit(rehearsal, name)
        rehearsal.wait_for(lambda: _training(rehearsal, "site-1"), "training", every=0.2)
        started = time.monotonic()
        fault(rehearsal)
        status = _end(rehearsal, folder)
        refused = _refusals(folder)
        lost = f"site-1's work in {len(refused)} round(s)" if refused else "nothing"
        return Seen(f"{status}; {'; '.join(refused) or 'nobody refused'}", time.monotonic() - started, lost)

    return act


def _kill_supernode(rehearsal: Rehearsal) -> None:
    rehearsal.kill(rehearsal.find(rehearsal.site_kit("site-1"), "flower-supernode"))


def _kill_worker(rehearsal: Rehearsal) -> None:
    rehearsal.kill(rehearsal.find(rehearsal.site_kit("site-1"), "client.worker_process"))


def _restart_proxy(rehearsal: Rehearsal) -> None:
    rehearsal.kill(rehearsal.proxy_processes())


def _kill_server(rehearsal: Rehearsal) -> Seen:
    folder = _submit(rehearsal, "server")
    rehearsal.wait_for((folder / "checkpoints").exists, "the first round to end", every=0.2)
    started = time.monotonic()
    rehearsal.end("server", signal.SIGKILL)
    rehearsal.kill([*rehearsal.find(rehearsal.server.folder, "flower-superlink"), *rehearsal.proxy_processes()])
    rehearsal.kill(rehearsal.find(rehearsal.server.folder, "flwr"))
    rehearsal.start_server()
    code, said = rehearsal.ask("server", "run", "--resume", "--kit", str(rehearsal.server.folder))
    seconds = time.monotonic() - started
    rounds = len((folder / "rounds.jsonl").read_text().splitlines())
    cut = "was cut off" in (rehearsal.folder / "server.log").read_text()
    what = f"'run … was cut off; go on with: ept-fed server run --resume' ({'seen' if cut else 'NOT seen'})"
    return Seen(f"{what}; then {'done' if code == 0 else said.strip()[-200:]}", seconds, f"{_ROUNDS - rounds} rounds")


def _silent_site(rehearsal: Rehearsal) -> Seen:
    folder = _submit(rehearsal, "silent", deadline=20.0, quorum=1)
    rehearsal.wait_for(lambda: _training(rehearsal, "site-1"), "training", every=0.2)
    stopped = rehearsal.find(rehearsal.site_kit("site-1"), "client.worker_process")
    started = time.monotonic()
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        status = _end(rehearsal, folder)
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    refused = _refusals(folder)
    return Seen(f"{status}; {'; '.join(sorted(set(refused)))}", time.monotonic() - started, "that site's work")


def _other_backbone(rehearsal: Rehearsal) -> Seen:
    started = time.monotonic()
    folder = _submit_with_seed_of_backbone(rehearsal)
    status = _end(rehearsal, folder)
    return Seen(
        f"{status}: {read_json_file(folder, 'result.json').get('ended')}", time.monotonic() - started, "nothing"
    )


def _submit_with_seed_of_backbone(rehearsal: Rehearsal) -> Path:
    """Give site-1 weights of its own: a file with other numbers for the same architecture."""
    import timm
    from safetensors.torch import save_file

    weights = rehearsal.folder / "other.safetensors"
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), weights)
    rehearsal.end("site-1")
    rehearsal.fill_site("site-1", weights=str(weights))
    rehearsal.start_site("site-1")
    rehearsal.wait_online(rehearsal.names)
    return _submit(rehearsal, "backbone")


def _refused_node(what: str, damage: Callable[[Rehearsal, Path], None]) -> Callable[[Rehearsal], Seen]:
    """Start a SuperNode with a damaged copy of site-1's kit, and take what it logs."""

    def act(rehearsal: Rehearsal) -> Seen:
        kit = rehearsal.copy_site("site-1", what)
        damage(rehearsal, kit)
        started = time.monotonic()
        rehearsal.start(what, "site", "start", str(kit), "--node-only")
        log = kit / "logs" / "node" / "supernode.log"
        rehearsal.wait_for(lambda: log.exists() and "Exit Code" in log.read_text(), "the refusal", every=0.2)
        seconds = time.monotonic() - started
        rehearsal.end(what)
        wanted = ("code:", "CERTIFICATE_VERIFY_FAILED")
        lines = [line.strip() for line in log.read_text().splitlines() if any(word in line for word in wanted)]
        return Seen(lines[0][-160:] if lines else "Exit Code 305", seconds, "nothing")

    return act


def _unregistered_key(_rehearsal: Rehearsal, kit: Path) -> None:
    (kit / "keys" / "node").write_bytes(spell_openssh_private(new_key()))


def _foreign_authority(_rehearsal: Rehearsal, kit: Path) -> None:
    from datetime import UTC, datetime

    from server.authority import Authority

    Authority(kit / "foreign", "another", datetime.now(UTC), 30)
    shutil.copy(kit / "foreign" / "ca.crt", kit / "tls" / "ca.crt")


FAULTS: dict[str, Callable[[Rehearsal], Seen]] = {
    "no fault": _without,
    "SuperNode killed while the site trains": _during_training("supernode", _kill_supernode),
    "worker killed while it trains": _during_training("worker", _kill_worker),
    "proxy killed while sites train": _during_training("proxy", _restart_proxy),
    "server, SuperLink and proxy killed after round 1": _kill_server,
    "a site falls silent (deadline 20 s, quorum 1)": _silent_site,
    "a node with a key that is not registered": _refused_node("unregistered", _unregistered_key),
    "a kit with another consortium's authority": _refused_node("foreign", _foreign_authority),
    "one of two sites has another backbone": _other_backbone,
}


def main() -> None:
    """Print a line per fault, as it is seen."""
    wanted = sys.argv[1:] or list(FAULTS)
    print("| fault | what the operator sees | seconds | lost |\n|---|---|---|---|")
    with Rehearsal(_SITES, patients=40) as rehearsal:
        rehearsal.start_server()
        for name in rehearsal.names:
            rehearsal.start_site(name)
        rehearsal.wait_online(rehearsal.names)
        for fault in wanted:
            try:
                seen = FAULTS[fault](rehearsal)
            except (RehearsalError, subprocess.TimeoutExpired) as error:
                seen = Seen(f"NOT SURVIVED: {str(error).splitlines()[0]}", float("nan"), "?")
                print(error, file=sys.stderr)
            print(f"| {fault} | {seen.what} | {seen.seconds:.0f} | {seen.lost} |", flush=True)
            rehearsal.wait_online(rehearsal.names)
        rehearsal.stop()
        left = rehearsal.descendants()
        sockets = [path.name for name in rehearsal.names for path in rehearsal.site_kit(name).glob("run/*.sock")]
        print(f"\nprocesses left: {left or 'none'}; sockets left: {sockets or 'none'}")


if __name__ == "__main__":
    main()
