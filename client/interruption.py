"""What a crash leaves of a ledger, in the middle of its first line or of its last, told from what no crash leaves.

The writer's order makes the difference: a ledger's first tip is on the disk before its first line is begun, and every
later line is on the disk before its tip is written. A cut that leaves the same bytes looks the same; whoever noted an
earlier end can tell.
"""

from cryptography.hazmat.primitives.asymmetric import ec

from client.ledger_entry import parse_tip

__all__ = ["is_torn_line", "is_unbegun"]

_TIP_BEGINS = b'{"schema":1,"ledger":"'


def is_torn_line(tail: bytes, ledger: str, number: int) -> bool:
    """Tell whether bytes without a line's end begin as entry `number` of a ledger does, or are none.

    A power cut may leave zeros where a line's bytes had not reached the disk.
    """
    return _begins(tail.rstrip(b"\0"), f'{{"schema":1,"ledger":"{ledger}","sequence":{number},'.encode())


def is_unbegun(content: bytes, tip_file: bytes | None, key: ec.EllipticCurvePublicKey | None) -> bool:
    """Tell whether this is a ledger that a crash kept from being begun, so that no message can have passed.

    Args:
        content: the whole ledger.
        tip_file: the whole tip; None if there is no such file.
        key: the site's; None if it is not known.
    """
    if b"\n" in content:
        return False
    tip = parse_tip(tip_file or b"")
    if tip is None:
        written = (tip_file or b"").rstrip(b" \n\0")
        return not content.rstrip(b"\0") and _begins(written, _TIP_BEGINS)
    return tip.sequence == 1 and is_torn_line(content, tip.ledger, 1) and (key is None or tip.is_signed_by(key))


def _begins(content: bytes, begun: bytes) -> bool:
    """Tell whether one of two byte strings is the beginning of the other."""
    return begun.startswith(content[: len(begun)])
