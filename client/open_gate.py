"""Opening a site's gate: its policy, key, ledger and budget, each refused in words if it cannot be relied on."""

import logging
from pathlib import Path

from client.audit import examine
from client.budget import BUDGET_FILE, BudgetBrokenError, BudgetLedger
from client.gate import Gate
from client.known_runs import PromptStore
from client.ledger import Ledger, LedgerBrokenError, LedgerBusyError, Record, tip_path
from client.policy import load_policy
from ept_fed.bundles.signing import read_private_key
from ept_fed.problems import InputRefusedError, Problem
from ept_fed.site_settings import SiteSettings

__all__ = ["LEDGER_FILE", "SITE_KEY", "check_gate", "open_gate"]

_log = logging.getLogger(__name__)

SITE_KEY = Path("keys/site.key")
LEDGER_FILE = "ledger.jsonl"
_PROMPTS_FOLDER = ".gate"  # no run has a name that begins with a dot


def open_gate(settings: SiteSettings, kit: Path) -> Gate:
    """Return the gate of a site: its policy, its ledger in the worker's state, signed with the kit's keys/site.key.

    Args:
        settings: the site's own.
        kit: folder of its kit.

    Raises:
        InputRefusedError: for a policy or key that cannot be used, a ledger that is not sound or that another worker
            has open.
    """
    policy = load_policy(settings.policy)
    key = read_private_key(kit / SITE_KEY)
    budget = _open_budget(settings)
    path = settings.worker.state / LEDGER_FILE
    try:
        ledger = Ledger(path, key, site=settings.site)
    except (LedgerBrokenError, LedgerBusyError) as error:
        raise InputRefusedError([Problem("ledger", str(path), str(error))]) from error
    except OSError as error:
        raise InputRefusedError([Problem("ledger", str(path), f"cannot be opened ({error.strerror})")]) from error
    if budget.owed is not None:
        reason = "the line of a private round was not written whole; the round counts as spent"
        _log.warning("%s: run %s, round %d", reason, budget.owed.run, budget.owed.round)
        ledger.append(Record("site", "recovered", "noted", run=budget.owed.run, round=budget.owed.round, reason=reason))
        budget.complete()
    _log.info("policy %s, ledger of %d entries", policy.digest[:16], len(ledger.history))
    return Gate(policy, ledger, PromptStore(settings.worker.state / _PROMPTS_FOLDER), budget, site=settings.site)


def check_gate(settings: SiteSettings, kit: Path) -> None:
    """Look at what `open_gate` needs without opening it: a worker may have the ledger open, and none need begin.

    Raises:
        InputRefusedError: for a policy or key that cannot be used, or a ledger that is not sound.
    """
    load_policy(settings.policy)
    _open_budget(settings)
    key = read_private_key(kit / SITE_KEY).public_key()
    path = settings.worker.state / LEDGER_FILE
    if not path.exists():
        return
    try:
        # The tip first: a worker may write meanwhile, and then the ledger is the newer one, as after an interruption.
        tip = tip_path(path).read_bytes() if tip_path(path).exists() else None
        found = examine(path.read_bytes(), tip, key)
    except OSError as error:
        raise InputRefusedError([Problem("ledger", str(path), f"cannot be read ({error.strerror})")]) from error
    if found.findings:
        fix = f"is not sound; {found.findings[0]}. See ept-fed audit verify {path}"
        raise InputRefusedError([Problem("ledger", str(path), fix)])


def _open_budget(settings: SiteSettings) -> BudgetLedger:
    """Return the ledger of the site's budget.

    Raises:
        InputRefusedError: if it is not whole, or cannot be read.
    """
    path = settings.worker.state / BUDGET_FILE
    try:
        return BudgetLedger(path)
    except BudgetBrokenError as error:
        fix = f"is not whole: {error}. Put it right, or take it away together with its .tip to begin a new budget"
        raise InputRefusedError([Problem("outgoing.budget", str(path), fix)]) from error
    except OSError as error:
        raise InputRefusedError(
            [Problem("outgoing.budget", str(path), f"cannot be read ({error.strerror})")]
        ) from error
