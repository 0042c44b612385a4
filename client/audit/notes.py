"""What a ledger's own notes say to a data-protection officer: how it began, what changed, and what interrupted it."""

from collections.abc import Collection, Sequence

from client.gate.witnesses import load_restart, serialize_served
from client.ledger.entry import Entry
from client.ledger.ledger import LEFT
from client.ledger.partial_writes import load_torn

__all__ = ["many", "say_notes"]


def say_notes(entries: Sequence[Entry], lost: Collection[str]) -> list[str]:
    """Say what the site's own entries note.

    Args:
        entries: of a ledger, at least one.
        lost: names of torn lines that are no longer beside it as they were set aside.
    """
    said = _say_beginning(entries[0])
    policies = list(dict.fromkeys(entry.policy for entry in entries if entry.policy is not None))
    if len(policies) > 1:
        said.append(f"The site's policy changed {many(len(policies) - 1, 'time')}.")
    interrupted = sum(entry.kind == "recovered" for entry in entries)
    if interrupted:
        said.append(f"The worker was interrupted while it wrote {many(interrupted, 'time')}, and went on.")
    return said + [sentence for entry in entries for sentence in _say_torn(entry, lost)]


def many(count: int, what: str) -> str:
    """Return "1 entry", or "2 entries"; of several words the first is in the plural."""
    if count == 1:
        return f"1 {what}"
    first, space, rest = what.partition(" ")
    plural = f"{first[:-1]}ies" if first.endswith("y") else f"{first}s"
    return f"{count:,} {plural}{space}{rest}"


def _say_beginning(first: Entry) -> list[str]:
    said = []
    reason, earlier = load_restart(first)
    if reason:
        known = f"what passed in {serialize_served(earlier)}" if earlier else "what passed before"
        said.append(f'It was begun anew on {first.time[:10]}, because "{reason}": {known} is in another ledger.')
    if LEFT in first.about:
        left = first.about[LEFT]
        said.append(f"When it was begun, {left}: a crash at an earlier beginning, or an emptied ledger.")
    return said


def _say_torn(entry: Entry, lost: Collection[str]) -> list[str]:
    torn = load_torn(entry.about)
    if torn is None:
        return []
    where = "is no longer beside the ledger as it was" if torn.file in lost else "is kept beside the ledger"
    return [
        f"{torn.size:,} bytes of a line that was never whole stood before entry {entry.sequence}: nothing was done "
        f"about its message, and {torn.file} (SHA-256 {torn.sha256[:16]}…) {where}."
    ]
