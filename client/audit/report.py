"""The content of a ledger for a data-protection officer, as sentences and as a document, with all findings."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from cryptography import x509

from client.gate.missing_ledger import load_restart, serialize_served
from client.ledger.entry import Entry
from client.ledger.ledger import LEFT, tip_path
from client.ledger.partial_writes import load_torn
from client.ledger.verify import Examination, Seen, examine
from ept_fed.catalog.methods import HEAD_TENSORS, STATISTICS_TENSORS
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.pki.certificates import common_name, find_chain_problems, parse_certificate, public_key

__all__ = ["describe", "show_ledger", "verify_ledger"]

_SHOWN_MINUTES = 16  # of 2026-11-23T11:36:13.123456Z


def verify_ledger(
    path: Path,
    *,
    certificate: Path | None = None,
    authority: Path | None = None,
    seen: str | None = None,
    every_signature: bool = False,
) -> dict[str, Any]:
    """Verify a ledger and describe its content.

    Args:
        path: the ledger; its tip is in the same folder.
        certificate: the site's certificate, whose key must have signed the ledger.
        authority: the consortium's certificate, which must have issued the site's certificate.
        seen: `SEQUENCE:HASH` of an earlier end that must still be in the ledger.
        every_signature: check the signature of every line even if no check fails.

    Returns:
        a JSON-ready document: `status` sound, altered or unbegun, `sentences`, `findings`, totals and the ledger's end.

    Raises:
        InputRefusedError: if a file cannot be read, or is not a certificate.
    """
    owner = None if certificate is None else parse_certificate(_read("--certificate", certificate), "--certificate")
    problems = []
    if authority is not None:
        problems = _find_issuer_problems(owner, parse_certificate(_read("--ca", authority), "--ca"))
    noted = None if seen is None else _parse_seen(seen)
    # The tip is read first. If a worker writes in between, the ledger is newer than the tip, as after an interruption.
    tip = _read("ledger", tip_path(path)) if tip_path(path).exists() else None
    content = _read("ledger", path)
    if problems:
        raise InputRefusedError(problems)
    key = None if owner is None else public_key(owner)
    result = examine(content, tip, key, seen=noted, every_signature=every_signature)
    if owner is not None and result.entries:
        site, named = result.entries[0].about.get("site", ""), common_name(owner)
        if site != named:
            result.add(1, "foreign key", f"the ledger belongs to {site}, the certificate to {named}")
    checked = "not checked" if owner is None else common_name(owner)
    torn = [found for entry in result.entries if (found := load_torn(entry.about)) is not None]
    return describe(result, checked, lost=[line.file for line in torn if not line.is_kept_beside(path)])


def show_ledger(
    path: Path,
    *,
    run: str | None = None,
    direction: str | None = None,
    kind: str | None = None,
    decision: str | None = None,
    last: int | None = None,
) -> list[dict[str, Any]]:
    """Return a ledger's entries that match all filters, oldest first, without verification.

    Raises:
        InputRefusedError: if the ledger cannot be read.
    """
    wanted = {"run": run, "direction": direction, "kind": kind, "decision": decision}
    entries = [
        entry.model_dump(mode="json", exclude={"signature"})
        for entry in examine(_read("ledger", path), None).entries
        if all(value is None or getattr(entry, name) == value for name, value in wanted.items())
    ]
    return entries if last is None else entries[-last:]


def describe(result: Examination, key_of: str, *, lost: Collection[str] = ()) -> dict[str, Any]:
    """Return the result of an examination as a document with sentences.

    Args:
        result: the result of `examine`.
        key_of: the owner of the certificate that the key was compared with; "not checked" without a certificate.
        lost: file names of partial writes that are missing next to the ledger, or were changed.
    """
    entries = result.entries
    latest = entries[-1] if entries else None
    return {
        "schema": 1,
        "status": "unbegun" if result.unbegun else "sound" if result.sound else "altered",
        "site": entries[0].about.get("site", "") if entries else "",
        "entries": len(entries),
        "from": entries[0].time if entries else None,
        "to": latest.time if latest else None,
        "totals": latest.totals.model_dump() if latest else None,
        "refused_by_rule": dict(_count_rules(entries)),
        "sentences": _say_content(entries) + _say_notes(entries, lost) if entries else [],
        "verdict": _say_verdict(result, key_of),
        "findings": [{"line": f.line, "kind": f.kind, "text": f.text} for f in result.findings],
        "more_findings": result.more,
        "signatures_checked": result.signatures,
        "key": latest.key if latest else None,
        "key_of": key_of,
        "torn_bytes": result.torn,
        "torn_lines_lost": list(lost),
        "unconfirmed_entries": result.unconfirmed,
        "end": f"{latest.sequence}:{result.last}" if latest and result.sound else None,
    }


def _say_content(entries: Sequence[Entry]) -> list[str]:
    """Return sentences about the messages in both directions; they are reliable only if the ledger is sound."""
    site, totals = entries[0].about.get("site", "?"), entries[-1].totals
    start, end = (entry.time[:_SHOWN_MINUTES].replace("T", " ") for entry in (entries[0], entries[-1]))
    said = [
        f"Between {start} and {end} UTC the site {site} sent {_many(totals.sent.messages, 'message')} of "
        f"{totals.sent.bytes:,} bytes in total, and received {_many(totals.received.messages, 'message')} of "
        f"{totals.received.bytes:,} bytes."
    ]
    sent = [entry for entry in entries if entry.direction == "out" and entry.decision != "refused"]
    said += _say_sent(sent)
    said.append(_say_absent(sent))
    for direction, what in (("in", "from the server"), ("out", "of the site, before sending,")):
        refused = [entry for entry in entries if entry.direction == direction and entry.decision == "refused"]
        if refused:
            rules = ", ".join(f"{rule} ({count})" for rule, count in _count_rules(refused).most_common())
            verb = "was" if len(refused) == 1 else "were"
            said.append(f"{_many(len(refused), 'message')} {what} {verb} refused because of these rules: {rules}.")
    if not any(entry.decision == "refused" for entry in entries):
        said.append("No message was refused.")
    clipped = sum(entry.decision == "clipped" for entry in entries)
    if clipped:
        said.append(f"The site scaled {_many(clipped, 'update')} down to the policy's bound before sending.")
    return said


def _say_sent(sent: Sequence[Entry]) -> list[str]:
    """Return one sentence for each kind and content of sent messages."""
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in sent:
        shapes = ", ".join(f"{name} {_shape(shape)}" for name, shape in entry.tensors)
        groups.setdefault((entry.kind, shapes), []).append(entry)
    said = []
    for (kind, shapes), members in groups.items():
        sizes = sorted({entry.bytes for entry in members})
        size = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
        size += " bytes each" if len(members) > 1 else " bytes"
        metrics = sorted({name for entry in members for name in entry.metrics})
        numbers = f"the numbers {', '.join(metrics)}" if metrics else ""
        held = " and ".join(part for part in (shapes, numbers) if part) or "no tensor and no metric"
        said.append(f"{_many(len(members), _KINDS.get(kind, kind))}, {size}: {held}.")
    return said


def _say_absent(sent: Sequence[Entry]) -> str:
    """Return sentences about sensitive tensors that were sent, and about data that was not sent.

    Images and file names are never sent: the sentences of `_say_sent` name every tensor and number that was sent.
    """
    names = {name for entry in sent for name, _ in entry.tensors}
    heads = any(name.split("/")[-1] in HEAD_TENSORS for name in names)
    statistics = any(name.split("/")[-1] in STATISTICS_TENSORS for name in names)
    gradients = any(name.startswith("gradient/") for name in names)
    absent = [*([] if heads or statistics else ["head"]), *([] if gradients else ["gradient"]), "image", "file name"]
    left = [
        *(["the classification head"] if heads else []),
        *(["statistics of the classes' features"] if statistics else []),
        *(["a gradient"] if gradients else []),
    ]
    return "".join(
        [f"the site sent {' and '.join(left)}. ".capitalize() if left else "", f"No {', no '.join(absent)} was sent."]
    )


def _say_verdict(result: Examination, key_of: str) -> list[str]:
    if result.unbegun:
        return [
            "THE LEDGER CONTAINS NO COMPLETE ENTRY. There are two possible causes: a crash when it was started, before "
            "any message could pass, or a person who emptied it and its tip. Check with an end that was noted earlier "
            "(--seen)."
        ]
    if not result.sound:
        count = f"more than {len(result.findings)}" if result.more else str(len(result.findings))
        return [f"THE LEDGER IS NOT INTACT ({count} finding{'s' if len(result.findings) > 1 else ''}):"] + [
            str(finding) for finding in result.findings
        ]
    signed = (
        "with the key in its first entry; the owner of this key was not checked (--certificate)"
        if key_of == "not checked"
        else f"with the key of the certificate of {key_of}"
    )
    count = _many(len(result.entries), "entry")
    said = [f"The ledger is intact: its {count} form an unbroken chain, and the end is signed {signed}."]
    if result.torn:
        said.append(
            f"They are followed by {result.torn} bytes of a partially written line. There are two possible causes: a "
            "crash, and then its message was not processed, or a removed part, by a person who kept an older tip. "
            "Check with an end that was noted earlier (--seen). The worker moves these bytes to a separate file at its "
            "next start, and records that."
        )
    if result.unconfirmed:
        said.append(f"The last {_many(result.unconfirmed, 'entry')} came after the last, interrupted write of the tip.")
    return said


_KINDS = {
    "introduction": "introduction",
    "train": "answer to training",
    "evaluate": "answer to evaluation",
    "advertisement": "advertisement of keys for masks",
    "shares": "message of encrypted shares of these keys",
    "masked input": "update under secure aggregation",
    "confirmation": "confirmation of the sites in the sum",
    "unmasking": "message for unmasking the sum",
}


def _shape(shape: Iterable[int]) -> str:
    return "×".join(str(axis) for axis in shape)


def _count_rules(entries: Iterable[Entry]) -> Counter[str]:
    refused = (entry.rule for entry in entries if entry.decision == "refused")
    return Counter(rule for rules in refused for rule in rules.split(", "))


def _parse_seen(text: str) -> Seen:
    sequence, _, last = text.partition(":")
    if not sequence.isascii() or not sequence.isdigit() or len(last) != 64:
        raise InputRefusedError([Problem("--seen", text, "must be SEQUENCE:HASH, as printed by an earlier verify")])
    return Seen(int(sequence), last)


def _read(field: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputRefusedError([Problem(field, str(path), f"cannot be read ({error.strerror})")]) from error


def _find_issuer_problems(owner: x509.Certificate | None, authority: x509.Certificate) -> list[Problem]:
    if owner is None:
        return [
            Problem("--ca", common_name(authority), "requires --certificate too, because it checks that certificate")
        ]
    if find_chain_problems(owner, authority, "--certificate"):
        fix = f"was not issued by {common_name(authority)} for a site; ask the consortium for the right certificate"
        return [Problem("--certificate", common_name(owner), fix)]
    return []


def _say_notes(entries: Sequence[Entry], lost: Collection[str]) -> list[str]:
    """Return sentences about the notes in the site's own entries.

    Args:
        entries: entries of a ledger, at least one.
        lost: file names of partial writes that are missing next to the ledger, or were changed.
    """
    said = _say_beginning(entries[0])
    policies = list(dict.fromkeys(entry.policy for entry in entries if entry.policy is not None))
    if len(policies) > 1:
        said.append(f"The site's policy changed {_many(len(policies) - 1, 'time')}.")
    interrupted = sum(entry.kind == "recovered" for entry in entries)
    if interrupted:
        said.append(f"The worker was interrupted {_many(interrupted, 'time')} during a write, and continued.")
    return said + [sentence for entry in entries for sentence in _say_torn(entry, lost)]


def _many(count: int, what: str) -> str:
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
