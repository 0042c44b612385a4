"""`ept-fed doctor rehearse`: a deployment on one machine, step by step, with the duration of each step."""

import json
import time
from collections.abc import Callable
from typing import Any

from simulations.deployment.loopback_deployment import Rehearsal, RehearsalError

__all__ = ["rehearse"]

_NAME = "rehearsal"


def rehearse(sites: int, *, keep: bool, tell: Callable[[str], None]) -> dict[str, Any]:
    """Provision, start, federate two short rounds and stop; return a report of the steps and rounds.

    Args:
        sites: number of sites, 2 or 3.
        keep: do not delete the folder with kits, logs and the run.
        tell: called with one line per step.

    Raises:
        InputRefusedError: if nginx is not installed.
    """
    steps: list[dict[str, Any]] = []
    started = time.perf_counter()

    def step(name: str, act: Callable[[], Any]) -> Any:
        nonlocal started
        result = act()
        now = time.perf_counter()
        steps.append({"step": name, "seconds": round(now - started, 1)})
        tell(f"{now - started:6.1f} s  {name}")
        started = now
        return result

    problem = None
    rehearsal = step(f"provision an authority, a server and {sites} sites", lambda: Rehearsal(sites, keep=keep))
    rounds: list[dict[str, Any]] = []
    with rehearsal:
        try:
            step("start SuperLink and nginx, register the sites' keys", rehearsal.start_server)
            step("start the sites: worker and SuperNode each", lambda: _start_sites(rehearsal))
            experiment = rehearsal.write_experiment(_NAME)
            code, said = step("run a federation of two rounds", lambda: rehearsal.run(experiment))
            if code:
                problem = said.strip()
            lines = rehearsal.server.runs / _NAME / "rounds.jsonl"
            rounds = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
        except RehearsalError as error:
            problem = str(error)
        step("stop everything", rehearsal.stop)
        left = rehearsal.descendants()
        if left and problem is None:
            problem = f"processes still run: {left}"
    return {
        "schema": 1,
        "status": "failed" if problem else "done",
        "problem": problem,
        "steps": steps,
        "rounds": [{key: line[key] for key in ("round", "seconds", "aggregated", "refused")} for line in rounds],
        "folder": str(rehearsal.folder) if keep else None,
    }


def _start_sites(rehearsal: Rehearsal) -> None:
    for name in rehearsal.names:
        rehearsal.start_site(name)
    rehearsal.wait_online(rehearsal.names)
