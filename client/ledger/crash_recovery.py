"""Detection of partial writes: the first or last line of a ledger after a crash, as distinct from tampering.

The writer's order makes the difference. A ledger's first tip is on the disk before its first line is begun, and every
later line is on the disk before its tip is written. So only the line after the one that the tip names can be partially
written: cut short, or with zeros where its bytes, even the first ones, had not reached the disk. A deliberate cut that
leaves the same bytes looks the same; only comparison with an end of the ledger that was noted earlier detects it.
"""

from cryptography.hazmat.primitives.asymmetric import ec

from client.ledger.entry import parse_tip

__all__ = ["is_torn", "is_torn_line", "is_unbegun", "split_lines"]

_TIP_BEGINS = b'{"schema":1,"ledger":"'


def split_lines(content: bytes) -> tuple[list[bytes], bytes]:
    """Return complete lines without their line ends, and the partially written line after them (b"" if there is none).

    No complete line contains a zero byte. So a last line with one is partially written, even if it has a line end.
    """
    *lines, tail = content.split(b"\n")
    if lines and b"\0" in lines[-1] and not tail.strip(b"\0"):
        tail = lines.pop() + b"\n" + tail
    return lines, tail


def is_torn(found: bytes, written: bytes) -> bool:
    """Return whether `found` can be a partial write of `written`: a prefix, with zeros for bytes not on the disk."""
    kept = found.rstrip(b"\0")
    return len(kept) <= len(written) and all(
        one in (0, other) for one, other in zip(kept, written[: len(kept)], strict=True)
    )


def is_torn_line(tail: bytes, ledger: str, number: int) -> bool:
    """Return whether these bytes can be a partial write of entry `number` of a ledger."""
    begun = f'{{"schema":1,"ledger":"{ledger}","sequence":{number},'.encode()
    return is_torn(tail[: len(begun)], begun)


def is_unbegun(content: bytes, tip_file: bytes | None, key: ec.EllipticCurvePublicKey | None) -> bool:
    """Return whether a crash interrupted the writing of the first entry, so that no message can have passed.

    Args:
        content: content of the ledger file.
        tip_file: content of the tip file; None if there is no such file.
        key: the site's public key; None if it is not known.
    """
    lines, tail = split_lines(content)
    if lines:
        return False
    tip = parse_tip(tip_file or b"")
    if tip is None:
        written = (tip_file or b"").rstrip(b" \n\0")
        return not tail.rstrip(b"\0") and is_torn(written[: len(_TIP_BEGINS)], _TIP_BEGINS)
    return tip.sequence == 1 and is_torn_line(tail, tip.ledger, 1) and (key is None or tip.is_signed_by(key))
