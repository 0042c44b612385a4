"""The command `ept-fed audit begin`: start a new ledger after the old one is lost, with a person's reason."""

from pathlib import Path
from typing import Any

from client.gate.missing_ledger import find_served, record_anew, serialize_served
from client.gate.open_gate import LEDGER_FILE, open_budget, open_ledger, read_ledger, read_site_key
from client.gate.privacy_budget import BUDGET
from client.ledger.verify import examine
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.protocol.messages import clean_text
from ept_fed.validation.load_site import load_site_settings

__all__ = ["begin_ledger"]

_LONGEST_REASON = 300


def begin_ledger(kit: Path, reason: str) -> dict[str, Any]:
    """Begin a ledger whose first entry contains the reason, and the earlier runs for which the state has evidence.

    The gate then has no run: the first backbone and splits that arrive are pinned again, and a current run must be
    proposed again. The spent privacy budget stays spent: the first entry contains its end.

    Args:
        kit: folder of the site's kit.
        reason: why the earlier ledger is lost; it is written to the first entry.

    Returns:
        a JSON-ready document: the ledger's path, the runs of an earlier ledger, and a sentence.

    Raises:
        InputRefusedError: if there is a ledger, if there is no reason, or if `open_gate` would refuse the settings.
    """
    settings = load_site_settings(kit / "site.yaml")
    key = read_site_key(kit)
    path, said = settings.worker.state / LEDGER_FILE, clean_text(reason.strip(), _LONGEST_REASON)
    problems = []
    if not said:
        problems.append(Problem("--reason", reason, "must contain a reason for the readers of the ledger"))
    if not examine(*read_ledger(path), key.public_key()).unbegun:
        problems.append(_is_there(path))
    if problems:
        raise InputRefusedError(problems)
    budget = open_budget(settings.worker.state)
    served = find_served(settings.worker.state, budget.charged, settings.site)
    ledger = open_ledger(path, key, settings.site, record_anew(said, served) | {BUDGET: budget.end})
    ledger.close()
    if ledger.history:
        # Another process began the ledger after the check above.
        raise InputRefusedError([_is_there(path)])
    known = (
        f"an earlier one contained {serialize_served(served)}"
        if served
        else "the site's state has no evidence of an earlier one"
    )
    return {
        "schema": 1,
        "status": "done",
        "ledger": str(path),
        "earlier_runs": served,
        "sentence": f"A new ledger begins at {path}; its first entry states that {known}, and contains the reason.",
    }


def _is_there(path: Path) -> Problem:
    fix = "already exists; keep it, and move it to another place together with its tip before a new one begins"
    return Problem("ledger", str(path), fix)
