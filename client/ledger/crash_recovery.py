"""What a crash leaves of a ledger, in the middle of its first line or of its last, told from what no crash leaves.

The writer's order makes the difference: a ledger's first tip is on the disk before its first line is begun, and every
later line is on the disk before its tip is written. So only the line after the one that the tip names can be torn: cut
short, or with zeros where its bytes, even its first ones, had not reached the disk. A cut that leaves the same bytes
looks the same; whoever noted an earlier end can tell.
"""

from cryptography.hazmat.primitives.asymmetric import ec

from client.ledger.entry import parse_tip

__all__ = ["is_torn", "is_torn_line", "is_unbegun", "split_lines"]

_TIP_BEGINS = b'{"schema":1,"ledger":"'


def split_lines(content: bytes) -> tuple[list[bytes], bytes]:
    """Return whole lines without their ends, and what an interruption left of one more; b"" if nothing.

    No line holds a zero byte. So a last line that does is torn, even where its end is there.
    """
    *lines, tail = content.split(b"\n")
    if lines and b"\0" in lines[-1] and not tail.strip(b"\0"):
        tail = lines.pop() + b"\n" + tail
    return lines, tail


def is_torn(found: bytes, written: bytes) -> bool:
    """Tell whether an interrupted write leaves this: its beginning, with zeros where bytes had not reached the disk."""
    kept = found.rstrip(b"\0")
    return len(kept) <= len(written) and all(
        one in (0, other) for one, other in zip(kept, written[: len(kept)], strict=True)
    )


def is_torn_line(tail: bytes, ledger: str, number: int) -> bool:
    """Tell whether this can be what an interruption left of entry `number` of a ledger."""
    begun = f'{{"schema":1,"ledger":"{ledger}","sequence":{number},'.encode()
    return is_torn(tail[: len(begun)], begun)


def is_unbegun(content: bytes, tip_file: bytes | None, key: ec.EllipticCurvePublicKey | None) -> bool:
    """Tell whether this is a ledger that a crash kept from being begun, so that no message can have passed.

    Args:
        content: the whole ledger.
        tip_file: the whole tip; None if there is no such file.
        key: the site's; None if it is not known.
    """
    lines, tail = split_lines(content)
    if lines:
        return False
    tip = parse_tip(tip_file or b"")
    if tip is None:
        written = (tip_file or b"").rstrip(b" \n\0")
        return not tail.rstrip(b"\0") and is_torn(written[: len(_TIP_BEGINS)], _TIP_BEGINS)
    return tip.sequence == 1 and is_torn_line(tail, tip.ledger, 1) and (key is None or tip.is_signed_by(key))
