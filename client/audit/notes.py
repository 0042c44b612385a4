"""Sentences about a ledger's own notes for a data-protection officer: its beginning, changes and interruptions."""

from collections.abc import Collection, Sequence

from client.gate.witnesses import load_restart, serialize_served
from client.ledger.entry import Entry
from client.ledger.ledger import LEFT
from client.ledger.partial_writes import load_torn

__all__ = ["many", "say_notes"]


def say_notes(entries: Sequence[Entry], lost: Collection[str]) -> list[str]:
    """Return sentences about the notes in the site's own entries.

    Args:
        entries: entries of a ledger, at least one.
        lost: file names of partial writes that are missing next to the ledger, or were changed.
    """
    said = _say_beginning(entries[0])
    policies = list(dict.fromkeys(entry.policy for entry in entries if entry.policy is not None))
    if len(policies) > 1:
        said.append(f"The site's policy changed {many(len(policies) - 1, 'time')}.")
    interrupted = sum(entry.kind == "recovered" for entry in entries)
    if interrupted:
        said.append(f"The worker was interrupted {many(interrupted, 'time')} during a write, and continued.")
    return said + [sentence for entry in entries for sentence in _say_torn(entry, lost)]


def many(count: int, what: str) -> str:
    """Return a count with its noun, such as "1 entry" or "2 entries"; only the first word gets a plural form."""
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
        said.append(f'It was started again on {first.time[:10]}, because "{reason}": {known} is in another ledger.')
    if LEFT in first.about:
        left = first.about[LEFT]
        said.append(f"When it was started, {left}: an earlier start crashed, or the ledger was emptied.")
    return said


def _say_torn(entry: Entry, lost: Collection[str]) -> list[str]:
    torn = load_torn(entry.about)
    if torn is None:
        return []
    where = "is missing next to the ledger or was changed" if torn.file in lost else "is kept next to the ledger"
    return [
        f"{torn.size:,} bytes of a partially written line were found before entry {entry.sequence}. Its message was "
        f"not processed, and {torn.file} (SHA-256 {torn.sha256[:16]}…) {where}."
    ]
