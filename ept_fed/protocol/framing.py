"""Where a frame begins and ends: a fixed prefix with the lengths of its head and of its arrays.

Whoever only passes frames on needs no more than this, and none of what `ept_fed.protocol.frames` imports to read them.
"""

import struct

from ept_fed.protocol.messages import MessageRefusedError

__all__ = [
    "MAX_ARRAY_BYTES",
    "MAX_HEAD_BYTES",
    "PREFIX_BYTES",
    "is_refusal",
    "make_prefix",
    "read_lengths",
    "read_prefix",
]

MAX_HEAD_BYTES = 1 << 20
MAX_ARRAY_BYTES = 1 << 31
_PREFIX = struct.Struct("<4sIQ")
_MAGIC = b"EPT1"
PREFIX_BYTES = _PREFIX.size
_REFUSAL = b'{"kind":"refusal",'


def make_prefix(head: int, body: int) -> bytes:
    """Return the PREFIX_BYTES before a head and arrays of so many bytes.

    Raises:
        MessageRefusedError: if that is more than a frame may hold.
    """
    _require_possible(head, body)
    return _PREFIX.pack(_MAGIC, head, body)


def read_prefix(prefix: bytes) -> tuple[int, int]:
    """Return the bytes of head and arrays that follow a prefix of PREFIX_BYTES.

    Raises:
        MessageRefusedError: if it is none, or promises more than a frame may hold.
    """
    try:
        magic, head, body = _PREFIX.unpack(prefix)
    except struct.error as error:
        raise MessageRefusedError(f"a frame starts with {PREFIX_BYTES} bytes, not {len(prefix)}") from error
    if magic != _MAGIC:
        raise MessageRefusedError("these bytes are no frame of this version")
    _require_possible(head, body)
    return head, body


def read_lengths(frame: bytes) -> tuple[int, int]:
    """Return the bytes of a whole frame's head and arrays.

    Raises:
        MessageRefusedError: if these bytes are no frame, or not all of one, or more.
    """
    head, body = read_prefix(frame[:PREFIX_BYTES])
    if len(frame) != PREFIX_BYTES + head + body:
        raise MessageRefusedError(f"a frame has {len(frame)} bytes; its prefix says {PREFIX_BYTES + head + body}")
    return head, body


def is_refusal(frame: bytes) -> bool:
    """Tell whether a frame is spelled as a refusal, without reading it."""
    return frame[PREFIX_BYTES:].startswith(_REFUSAL)


def _require_possible(head: int, body: int) -> None:
    if head > MAX_HEAD_BYTES or body > MAX_ARRAY_BYTES:
        maximum = f"{MAX_HEAD_BYTES} and {MAX_ARRAY_BYTES}"
        raise MessageRefusedError(f"a frame of {head} and {body} bytes; the most are {maximum}")
