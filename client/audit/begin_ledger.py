"""`ept-fed audit begin`: a new ledger in the place of one that is gone for good, on a person's word."""

from pathlib import Path
from typing import Any

from client.gate.open import LEDGER_FILE, open_budget, open_ledger, read_ledger, read_site_key
from client.gate.privacy_budget import BUDGET
from client.gate.witnesses import find_served, record_anew, serialize_served
from client.ledger.verify import examine
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.protocol.messages import clean_text
from ept_fed.validation.load_site import load_site_settings

__all__ = ["begin_ledger"]

_LONGEST_REASON = 300


def begin_ledger(kit: Path, reason: str) -> dict[str, Any]:
    """Begin a ledger whose first entry says why, and what an earlier one knew by the witness of the site's state.

    The gate then knows no run any more: the first backbone and splits that come are pinned anew, and a run that goes on
    has to be proposed again. What the privacy budget has spent stays spent: the first entry names its end.

    Args:
        kit: folder of the site's kit.
        reason: for the first entry.

    Returns:
        a JSON-ready document: the ledger's path, the runs that an earlier one knew, and a sentence.

    Raises:
        InputRefusedError: if there is a ledger, no reason, or anything that `open_gate` refuses.
    """
    settings = load_site_settings(kit / "site.yaml")
    key = read_site_key(kit)
    path, said = settings.worker.state / LEDGER_FILE, clean_text(reason.strip(), _LONGEST_REASON)
    problems = []
    if not said:
        problems.append(Problem("--reason", reason, "say why, for whoever reads the ledger"))
    if not examine(*read_ledger(path), key.public_key()).unbegun:
        problems.append(_is_there(path))
    if problems:
        raise InputRefusedError(problems)
    budget = open_budget(settings)
    served = find_served(settings.worker.state, budget.charged, settings.site)
    ledger = open_ledger(path, key, settings.site, record_anew(said, served) | {BUDGET: budget.end})
    ledger.close()
    if ledger.history:
        # Somebody else began it since it was looked at.
        raise InputRefusedError([_is_there(path)])
    known = f"an earlier one knew {serialize_served(served)}" if served else "the site's state knows of no earlier one"
    return {
        "schema": 1,
        "status": "done",
        "ledger": str(path),
        "earlier_runs": served,
        "sentence": f"A new ledger begins at {path}; its first entry says that {known}, and why it is gone.",
    }


def _is_there(path: Path) -> Problem:
    fix = "is there; keep it, and move it aside together with its tip before a new one begins"
    return Problem("ledger", str(path), fix)
