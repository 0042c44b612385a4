"""Verification of a ledger: every line is signed by the site, complete and in its place, and no line is missing.

Each line contains the hash of the line before. The tip, which is signed and in a separate file, contains the hash of
the last line. So if the chain is intact, the tip's signature covers every byte; checking all signatures would take many
times as long. If there is a finding, or on request, every line's own signature is checked too, to locate the cause.

Not detected: a ledger that the holder of the site's key wrote anew, and a cut of ledger and tip together by somebody
who kept an older tip. Both are detected with sequence and hash of an earlier end that was noted elsewhere (`Seen`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from client.ledger.crash_recovery import is_torn_line, is_unbegun, split_lines
from client.ledger.entry import FIRST, NOTHING, Entry, Tip, hash_line, parse_entry, parse_tip
from ept_fed.pki.signing import fingerprint

__all__ = ["PUBLIC_KEY", "Examination", "Finding", "Kind", "Seen", "examine", "read_public_pem"]

Kind = Literal[
    "altered", "foreign key", "spliced", "missing", "added", "reordered", "rewound", "replaced", "totals", "cut", "tip"
]
PUBLIC_KEY = "public_key"  # key in the first entry's `about`
_MAX_FINDINGS = 20


@dataclass(frozen=True)
class Finding:
    """A fault and its line number (1-based; the line after the last one if the end is missing)."""

    line: int
    kind: Kind
    text: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.kind}: {self.text}"


@dataclass(frozen=True)
class Seen:
    """An earlier end of the ledger that was noted elsewhere: sequence and hash of its last line."""

    sequence: int
    last: str


@dataclass
class Examination:
    """The entries of a ledger and the findings of its verification.

    Attributes:
        entries: the lines that can be read, in the file's order.
        findings: signs of tampering, by line; empty for a sound ledger.
        torn: number of bytes of a partially written last line. The cause is a crash before its message was processed,
            or a cut by somebody who kept an older tip.
        unconfirmed: number of complete entries after the tip; an interruption came before the tip was written.
        unbegun: whether there is no complete entry, as after a crash at the beginning, or after the ledger was emptied.
        last: hash of the last line.
        signatures: number of lines whose own signature was checked.
        more: whether there are more findings than are listed.
    """

    entries: list[Entry] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    torn: int = 0
    unconfirmed: int = 0
    unbegun: bool = False
    last: str = FIRST
    signatures: int = 0
    more: bool = False

    @property
    def sound(self) -> bool:
        """Return whether there are no findings and at least one entry."""
        return not self.findings and not self.unbegun

    def add(self, line: int, kind: Kind, text: str) -> None:
        """Add a finding."""
        if len(self.findings) == _MAX_FINDINGS:
            self.more = True
        else:
            self.findings.append(Finding(line, kind, text))


def examine(
    content: bytes,
    tip_file: bytes | None,
    key: ec.EllipticCurvePublicKey | None = None,
    *,
    seen: Seen | None = None,
    every_signature: bool = False,
) -> Examination:
    """Verify a ledger's bytes.

    Args:
        content: content of the ledger file.
        tip_file: content of the tip file; None if there is no such file.
        key: the site's public key, from its certificate; None takes the key in the first entry. That shows that nobody
            without that key altered the ledger, but not whose key it is.
        seen: an end that was noted earlier and must still be in the ledger.
        every_signature: check every line's own signature even if there are no findings.
    """
    lines, tail = split_lines(content)
    parsed = [parse_entry(line) for line in lines]
    first = next((entry for entry in parsed if entry is not None), None)
    named = read_public_pem(first.about.get(PUBLIC_KEY, "")) if first is not None else None
    result = _follow(lines, parsed, tail, tip_file, key or named, seen, set())
    if result.findings or every_signature:
        unsigned = _check_signatures(parsed, key or named)
        located = _follow(lines, parsed, tail, tip_file, key or named, seen, unsigned)
        located.signatures = len(parsed)
        return located
    result.signatures = min(1 + result.unconfirmed, len(parsed))
    return result


def read_public_pem(pem: str) -> ec.EllipticCurvePublicKey | None:
    """Return the P-384 public key in a PEM; None if it contains none."""
    try:
        key = serialization.load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        return None
    return key if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1) else None


def _check_signatures(parsed: Sequence[Entry | None], key: ec.EllipticCurvePublicKey | None) -> set[int]:
    """Return the indices of entries whose signature was not made with this key."""
    return {
        place
        for place, entry in enumerate(parsed)
        if entry is not None and (key is None or not entry.is_signed_by(key))
    }


def _follow(
    lines: Sequence[bytes],
    parsed: Sequence[Entry | None],
    tail: bytes,
    tip_file: bytes | None,
    key: ec.EllipticCurvePublicKey | None,
    seen: Seen | None,
    unsigned: set[int],
) -> Examination:
    """Check the chain from the first line to the tip."""
    result = Examination(entries=[entry for entry in parsed if entry is not None])
    if not result.entries:
        result.unbegun = seen is None and is_unbegun(b"\n".join([*lines, tail]), tip_file, key)
        if not result.unbegun:
            result.add(1, "cut", "there is no entry that can be read")
        return result
    ledger, mine = result.entries[0].ledger, fingerprint(key) if key is not None else ""
    if key is None:
        result.add(1, "altered", "the first entry does not name the site's key")
    _follow_lines(result, lines, parsed, ledger, mine, unsigned)
    _check_tip(result, lines, tail, tip_file, key, ledger)
    if seen is not None:
        held = hash_line(lines[seen.sequence - 1]) if 1 <= seen.sequence <= len(lines) else None
        if held != seen.last:
            text = (
                f"the end that was noted earlier (entry {seen.sequence}) is not in this ledger: it was cut or rewritten"
            )
            result.add(min(max(seen.sequence, 1), len(lines) + 1), "cut" if held is None else "replaced", text)
    result.findings.sort(key=lambda finding: finding.line)
    return result


def _follow_lines(
    result: Examination,
    lines: Sequence[bytes],
    parsed: Sequence[Entry | None],
    ledger: str,
    mine: str,
    unsigned: set[int],
) -> None:
    present = {entry.sequence for entry in parsed if entry is not None}
    where: dict[bytes, int] = {}
    met: set[int] = set()
    expected, previous, totals, broken = 1, FIRST, NOTHING, False
    for place, (line, entry) in enumerate(zip(lines, parsed, strict=True)):
        number = place + 1
        if entry is None:
            result.add(number, "altered", "is not an entry in the form that a ledger writes")
            expected, previous, broken = expected + 1, hash_line(line), True
            continue
        fault = _find_fault(entry, number, line, ledger, mine, unsigned, where)
        where.setdefault(line, number)
        if fault is not None:
            result.add(number, *fault)
        moved = entry.sequence != expected
        if moved and fault is None:
            result.add(number, *_explain_jump(entry, expected, present, met))
        if fault is None and not moved and not broken and entry.previous != previous:
            text = f"is not the line whose hash the next entry, {entry.sequence}, contains: it was replaced"
            result.add(max(number - 1, 1), "replaced", text)
        following = totals.plus(entry.direction, entry.decision, entry.bytes)
        if fault is None and not moved and not broken and entry.totals != following:
            result.add(number, "totals", "its totals are not the sum of the totals before and its own message")
        broken = fault is not None or moved
        met.add(entry.sequence)
        if fault is None:
            expected, totals = max(expected, entry.sequence + 1), entry.totals
        elif fault[0] != "added":
            expected += 1
        previous = hash_line(line)
    result.last = hash_line(lines[-1])


def _find_fault(
    entry: Entry, number: int, line: bytes, ledger: str, mine: str, unsigned: set[int], where: dict[bytes, int]
) -> tuple[Kind, str] | None:
    """Return the fault of a single line, without regard to its order; None if it has none."""
    if line in where:
        return "added", f"repeats line {where[line]}"
    if entry.ledger != ledger:
        return "spliced", f"belongs to another ledger ({entry.ledger[:8]}…, this one is {ledger[:8]}…)"
    if entry.key != mine:
        return "foreign key", f"names the key {entry.key[:16]}…, not the site's {mine[:16]}…"
    if number - 1 in unsigned:
        return "altered", "does not have the site's signature: it was altered, or not written by the site"
    return None


def _explain_jump(entry: Entry, expected: int, present: set[int], met: set[int]) -> tuple[Kind, str]:
    if entry.sequence < expected:
        if entry.sequence in met:
            return "rewound", f"is entry {entry.sequence} again; {expected} was expected"
        return "reordered", f"is entry {entry.sequence}, which belongs before"
    skipped = range(expected, entry.sequence)
    if all(number in present for number in skipped):
        return "reordered", f"is entry {entry.sequence}; {expected} was expected and comes later"
    return "missing", f"entries {expected} to {entry.sequence - 1} are missing before it"


def _check_tip(
    result: Examination,
    lines: Sequence[bytes],
    tail: bytes,
    tip_file: bytes | None,
    key: ec.EllipticCurvePublicKey | None,
    ledger: str,
) -> None:
    """Compare the end of the ledger with its tip."""
    after = len(lines) + 1
    tip = None if tip_file is None else parse_tip(tip_file)
    if tip is None:
        text = "the ledger has no tip file" if tip_file is None else "the tip cannot be read"
        result.add(after, "tip", f"{text}, so entries may be missing at the end")
    elif key is None or not tip.is_signed_by(key):
        result.add(after, "tip", "the tip is not signed with the site's key")
    elif tip.ledger != ledger:
        result.add(after, "tip", "the tip belongs to another ledger")
    else:
        _find_tip(result, lines, tail, key, tip)
    if tail:
        _check_torn(result, tail, after, ledger)


def _find_tip(
    result: Examination, lines: Sequence[bytes], tail: bytes, key: ec.EllipticCurvePublicKey, tip: Tip
) -> None:
    """Find the line that the tip names; every entry after it must have the site's signature."""
    place = next((place for place in reversed(range(len(lines))) if hash_line(lines[place]) == tip.last), None)
    highest = max(entry.sequence for entry in result.entries)
    if place is not None:
        late = [parse_entry(line) for line in lines[place + 1 :]]
        result.unconfirmed = len(late)
        for number, entry in enumerate(late, start=place + 2):
            if entry is None or not entry.is_signed_by(key):
                result.add(number, "added", "comes after the tip and does not have the site's signature")
    elif highest < tip.sequence:
        text = f"the ledger ended with entry {tip.sequence}; {tip.sequence - highest} are missing at the end"
        text += "; the incomplete line was complete before" if tail else ""
        result.add(len(lines) + 1, "cut", text)
    elif result.sound:
        result.add(len(lines), "replaced", "is not the entry that the tip names")


def _check_torn(result: Examination, tail: bytes, number: int, ledger: str) -> None:
    """Accept an incomplete last line as a partial write if it begins like the next entry; otherwise add a finding."""
    if is_torn_line(tail, ledger, number):
        result.torn = len(tail)
    else:
        result.add(number, "added", "these bytes without a line's end are not the beginning of the next entry")
