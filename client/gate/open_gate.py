"""Opening of a site's gate: policy, key, ledger and budget; each one is refused with a reason if it is not sound."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from cryptography.hazmat.primitives.asymmetric import ec

from client.gate.gate import Gate
from client.gate.missing_ledger import find_missing, find_served, serialize_served
from client.gate.policy import load_policy
from client.gate.privacy_budget import BUDGET, BUDGET_FILE, UNSPENT, BudgetBrokenError, BudgetLedger
from client.gate.run_history import PromptStore
from client.ledger.entry import Entry
from client.ledger.ledger import Ledger, LedgerBrokenError, LedgerBusyError, Record, tip_path
from client.ledger.verify import examine
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.pki.signing import read_private_key
from ept_fed.validation.load_site import SiteSettings

__all__ = [
    "LEDGER_FILE",
    "SITE_KEY",
    "check_gate",
    "open_budget",
    "open_gate",
    "open_gate_of",
    "open_ledger",
    "read_ledger",
    "read_site_key",
]

_log = logging.getLogger(__name__)

SITE_KEY = Path("keys/site.key")
LEDGER_FILE = "ledger.jsonl"
_PROMPTS_FOLDER = ".gate"  # no run has a name that begins with a dot


def open_gate(settings: SiteSettings, kit: Path) -> Gate:
    """Return the gate of a site; its ledger is in the worker's state folder and is signed with the kit's keys/site.key.

    Args:
        settings: the site's own settings.
        kit: folder of the site's kit.

    Raises:
        InputRefusedError: for a policy or key that cannot be used; for a ledger that is not sound, that another worker
            has open, or that contains less than the site's own state.
    """
    return open_gate_of(settings.site, policy=settings.policy, state=settings.worker.state, kit=kit)


def open_gate_of(site: str, *, policy: Path, state: Path, kit: Path) -> Gate:
    """Return the gate of a site from its paths, see `open_gate`.

    Args:
        site: the site's name.
        policy: its policy file.
        state: folder of the ledger, the budget, and what else the site keeps of its runs.
        kit: folder with the key.
    """
    rules = load_policy(policy)
    key = read_site_key(kit)
    budget = open_budget(state)
    path = state / LEDGER_FILE
    served = find_served(state, budget.charged, site)
    content, tip = read_ledger(path)
    if examine(content, tip, key.public_key()).unbegun:
        # Check this before `open_ledger` would begin the ledger anew without a report.
        _require_known(path, served, [])
    ledger = open_ledger(path, key, site)
    try:
        _require_known(path, served, ledger.history)
        _require_charged(budget, ledger.history)
        _complete(budget, ledger)
    except BaseException:
        ledger.close()
        raise
    _log.info("policy %s, ledger of %d entries", rules.digest[:16], len(ledger.history))
    return Gate(rules, ledger, PromptStore(state / _PROMPTS_FOLDER), budget, site=site)


def check_gate(settings: SiteSettings, kit: Path) -> None:
    """Check what `open_gate` needs without opening it: a worker may have the ledger open, and none has to be begun.

    Raises:
        InputRefusedError: as in `open_gate`, except for a ledger that is open.
    """
    load_policy(settings.policy)
    budget = open_budget(settings.worker.state)
    key = read_site_key(kit).public_key()
    path = settings.worker.state / LEDGER_FILE
    # The state first: a worker may write meanwhile, and it writes to the ledger before it writes to the state.
    served = find_served(settings.worker.state, budget.charged, settings.site)
    found = examine(*read_ledger(path), key)
    if found.findings:
        fix = f"is not sound; {found.findings[0]}. See ept-fed audit verify {path}"
        raise InputRefusedError([Problem("ledger", str(path), fix)])
    _require_known(path, served, found.entries)
    # Read the budget again, after the ledger: a budget line is written before the ledger's note of it.
    _require_charged(open_budget(settings.worker.state), found.entries)


def read_site_key(kit: Path) -> ec.EllipticCurvePrivateKey:
    """Return the private key that a kit's site signs with.

    Raises:
        InputRefusedError: see `read_private_key`.
    """
    return read_private_key(kit / SITE_KEY, str(SITE_KEY))


def read_ledger(path: Path) -> tuple[bytes, bytes | None]:
    """Return the bytes of a ledger (empty if it does not exist) and of its tip (None if it does not exist).

    Raises:
        InputRefusedError: if they cannot be read.
    """
    try:
        # The tip first: if a worker writes meanwhile, the ledger is newer than the tip, as after an interruption.
        tip = tip_path(path).read_bytes() if tip_path(path).exists() else None
        return path.read_bytes() if path.exists() else b"", tip
    except OSError as error:
        raise InputRefusedError([Problem("ledger", str(path), f"cannot be read ({error.strerror})")]) from error


def open_ledger(
    path: Path,
    key: ec.EllipticCurvePrivateKey,
    site: str,
    beginning: Mapping[str, str] = MappingProxyType({}),
) -> Ledger:
    """Return a site's ledger, open for writing; arguments as for `Ledger`.

    Raises:
        InputRefusedError: if it is not sound, another process has it open, or it cannot be opened.
    """
    try:
        return Ledger(path, key, site=site, beginning=beginning)
    except (LedgerBrokenError, LedgerBusyError) as error:
        raise InputRefusedError([Problem("ledger", str(path), str(error))]) from error
    except OSError as error:
        raise InputRefusedError([Problem("ledger", str(path), f"cannot be opened ({error.strerror})")]) from error


def open_budget(state: Path) -> BudgetLedger:
    """Return the ledger of the site's budget, in its state folder.

    Raises:
        InputRefusedError: if it is not complete, or cannot be read.
    """
    path = state / BUDGET_FILE
    try:
        return BudgetLedger(path)
    except BudgetBrokenError as error:
        fix = f"is not complete: {error}. Restore the file and its .tip"
        raise InputRefusedError([Problem("outgoing.budget", str(path), fix)]) from error
    except OSError as error:
        raise InputRefusedError(
            [Problem("outgoing.budget", str(path), f"cannot be read ({error.strerror})")]
        ) from error


def _require_known(path: Path, served: Mapping[str, int], history: Sequence[Entry]) -> None:
    """Raise InputRefusedError if the site's state contains more than its ledger."""
    missing = find_missing(served, history)
    if not missing:
        return
    there = "ends before that" if history else "does not exist, or is empty"
    fix = (
        f"{there}: the site's state contains {serialize_served(missing)}, so the ledger or its end was removed "
        "together with its tip. Find out by whom, and restore both. If they are lost, move the rest of them aside, and "
        "begin a new ledger, which records the reason: ept-fed audit begin KIT --reason WHY"
    )
    raise InputRefusedError([Problem("ledger", str(path), fix)])


def _require_charged(budget: BudgetLedger, history: Sequence[Entry]) -> None:
    """Raise InputRefusedError if the budget lacks a line that the ledger names."""
    named = _find_named(history)
    if not budget.holds(named):
        fix = (
            f"lacks line {named.partition(':')[0]}, which the ledger names: it was removed together with its tip, "
            "or the file is an older copy. Restore both. If they are lost, the amount spent is unknown: move the "
            "ledger and its tip aside too, and begin a new ledger, which records the reason: "
            "ept-fed audit begin KIT --reason WHY"
        )
        raise InputRefusedError([Problem("outgoing.budget", str(budget.path), fix)])


def _complete(budget: BudgetLedger, ledger: Ledger) -> None:
    """Write the ledger's note of the budget's end, then the budget's last line, if an interruption prevented either."""
    if budget.owed is not None or budget.end != _find_named(ledger.history):
        run, number = budget.charged[-1].run, budget.charged[-1].round
        what = "the ledger's note of" if budget.owed is None else "the line of"
        reason = f"{what} a private round was not written completely; the round counts as spent"
        _log.warning("%s: run %s, round %d", reason, run, number)
        about = {BUDGET: budget.end}
        ledger.append(Record("site", "recovered", "noted", run=run, round=number, reason=reason, about=about))
    budget.complete()


def _find_named(history: Sequence[Entry]) -> str:
    """Return the latest end of the budget that the ledger names."""
    return next((entry.about[BUDGET] for entry in reversed(history) if BUDGET in entry.about), UNSPENT)
