"""The status of the server and its runs as one document, for display and for programs."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ept_fed.errors import InputRefusedError
from ept_fed.reports.run.round_record import RoundRecord
from ept_fed.reports.run.run_folder import RunFolder
from server.deployment.run_state import read_json_file
from server.deployment.server_kit import ServerKit, open_server_kit
from server.deployment.service import ServerAwayError, find_server
from server.deployment.submit import connect
from server.deployment.superlink_control import ControlError, Node, Run

__all__ = ["describe_run", "describe_server"]


def describe_server(folder: Path) -> dict[str, Any]:
    """Return the status of a kit's server: its process, its sites and the newest run.

    Raises:
        InputRefusedError: if the folder is not a server's kit.
    """
    kit = open_server_kit(folder)
    pid, problem = None, None
    nodes: list[Node] = []
    runs: list[Run] = []
    try:
        pid = find_server(kit)
        with connect(kit) as control:
            nodes, runs = control.nodes(), control.runs()
    except PermissionError:
        problem = "the kit belongs to another user; only that user can see the status"
    except (ServerAwayError, ControlError) as error:
        problem = str(error)
    return {
        "schema": 1,
        "federation": kit.federation.name,
        "process": pid,
        "problem": problem,
        "sites": _describe_sites(kit, nodes),
        "runs": [{"name": run.name, "status": run.status, "ended": run.ended, "details": run.details} for run in runs],
        "run": describe_run(kit, runs[-1] if runs else None),
    }


def describe_run(kit: ServerKit, run: Run | None) -> dict[str, Any] | None:
    """Return the status of a run, or of the newest run folder if `run` has none; None if there is no run folder.

    The remaining time is estimated from the mean time of the rounds so far.
    """
    folders = sorted(kit.runs.glob("*/config.yaml"), key=lambda path: path.stat().st_mtime)
    if run is not None and run.name in {path.parent.name for path in folders}:
        folder = RunFolder(kit.runs / run.name)
    elif folders:
        folder = RunFolder(folders[-1].parent)
    else:
        return None
    progress, result = (read_json_file(folder.path, name) for name in ("progress.json", "result.json"))
    try:
        records = folder.read_rounds()
    except InputRefusedError:
        records = []
    rounds, done = progress.get("rounds", 0), max(progress.get("round", 0) - 1, len(records))
    over = bool(result) or (run is not None and bool(run.ended))
    times = [record.seconds for record in records if record.seconds > 0]
    left = None if over or not times else round(sum(times) / len(times) * max(0, rounds - done), 1)
    return {
        "name": folder.path.name,
        "folder": str(folder.path),
        "phase": result.get("status") or (run and run.ended) or progress.get("phase", "submitted"),
        "ended": result.get("ended") or (run.details if over and run is not None else None),
        "round": progress.get("round", 0),
        "rounds": rounds,
        "seconds_left": left,
        "silent_seconds": None if over or "at" not in progress else round(time.time() - progress["at"], 1),
        "sites": _describe_progress(progress.get("sites", {}), records),
        "left_out": result.get("left_out", {}),
        "refused": [{"round": record.round, **vars(refusal)} for record in records for refusal in record.refused][-20:],
    }


def _describe_sites(kit: ServerKit, nodes: list[Node]) -> dict[str, dict[str, Any]]:
    keys = kit.public_keys()
    by_name = {node.name: node for node in nodes if keys.get(node.name) == node.key}
    return {
        name: {
            "status": "revoked" if site.revoked else by_name[name].status if name in by_name else "not registered",
            "location": site.location,
            "not_after": site.not_after,
        }
        for name, site in sorted(kit.sites.items())
    }


def _describe_progress(sites: Mapping[str, Any], records: Sequence[RoundRecord]) -> dict[str, dict[str, Any]]:
    described = {}
    for name, last in sorted(sites.items()):
        entries = [record.sites[name] for record in records if name in record.sites]
        described[name] = {
            **last,
            "examples": max((entry.examples for entry in entries), default=0),
            "bytes_sent": sum(entry.bytes_sent for entry in entries),
            "bytes_received": sum(entry.bytes_received for entry in entries),
            "refusals": sum(1 for record in records for refusal in record.refused if refusal.site == name),
        }
    return described
