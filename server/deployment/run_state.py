"""The files that only a deployed run has in its run folder: the agreement, the progress and the result.

agreement.safetensors   the plan that the sites agreed on, with the initial prompts; a resumed run uses the same plan
progress.json           phase, round and each site's last numbers, updated with every reply
result.json             how the run ended, written last
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import ept_fed
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.protocol.layout import PayloadMismatchError
from ept_fed.protocol.messages import MessageRefusedError
from ept_fed.run_plan.plan_json import plan_from_json, plan_to_json
from ept_fed.storage.checkpoint_file import DamagedCheckpointError, read_checksummed, write_checksummed
from ept_fed.storage.files import write_json
from server.deployment.agreement import Agreement

__all__ = [
    "RUN_KEY",
    "RunPhase",
    "read_agreement",
    "read_json_file",
    "write_agreement",
    "write_progress",
    "write_result",
]

# The one setting of a submitted run: the name of its folder.
RUN_KEY = "run"
RunPhase = Literal["waiting for sites", "rounds", "done"]
_AGREEMENT, _PROGRESS, _RESULT = "agreement.safetensors", "progress.json", "result.json"
_INITIAL = "initial"


def write_agreement(folder: Path, agreement: Agreement) -> None:
    """Write the agreement to the run folder."""
    about = {
        "schema": 1,
        "code": ept_fed.__version__,
        "plan": plan_to_json(agreement.plan),
        "left_out": dict(agreement.left_out),
    }
    write_checksummed(folder / _AGREEMENT, {_INITIAL: agreement.plan.initial}, about)


def read_agreement(folder: Path) -> Agreement | None:
    """Return the agreement of a run, or None if there is none yet.

    Raises:
        InputRefusedError: if the file is damaged or was written by another version.
    """
    path = folder / _AGREEMENT
    if not path.exists():
        return None
    try:
        tensors, about = read_checksummed(path)
        if (about["schema"], about["code"]) != (1, ept_fed.__version__):
            raise ValueError(f"it was written by ept-fed {about['code']}, this is {ept_fed.__version__}")
        return Agreement(plan_from_json(about["plan"], tensors[_INITIAL]), about["left_out"])
    except (DamagedCheckpointError, MessageRefusedError, PayloadMismatchError, KeyError, ValueError) as error:
        fix = f"cannot be used ({error}); start a new run under another name"
        raise InputRefusedError([Problem("--resume", str(path), fix)]) from error


def write_progress(
    folder: Path, phase: RunPhase, *, round_number: int, rounds: int, sites: Mapping[str, Mapping[str, Any]]
) -> None:
    """Write the run's progress for status displays."""
    document = {"schema": 1, "phase": phase, "round": round_number, "rounds": rounds, "at": time.time()}
    write_json(folder / _PROGRESS, {**document, "sites": sites})


def write_result(
    folder: Path, status: Literal["done", "failed"], *, ended: str, left_out: Mapping[str, str] | None = None
) -> None:
    """Write how the run ended."""
    write_json(folder / _RESULT, {"schema": 1, "status": status, "ended": ended, "left_out": dict(left_out or {})})


def read_json_file(folder: Path, name: Literal["progress.json", "result.json"]) -> dict[str, Any]:
    """Return one of the two documents; it is empty if the file is missing or cannot be read (yet)."""
    try:
        document: Any = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) and document.get("schema") == 1 else {}
