"""The prefix of a frame: it has a fixed size, and contains the lengths of the frame's head and of its arrays.

A process that only forwards frames needs only this module, and not the imports of `ept_fed.protocol.frames`.
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
    """Return the prefix of a frame whose head and arrays have these lengths in bytes.

    Raises:
        MessageRefusedError: if a length exceeds the maximum.
    """
    _require_possible(head, body)
    return _PREFIX.pack(_MAGIC, head, body)


def read_prefix(prefix: bytes) -> tuple[int, int]:
    """Return the lengths in bytes of the head and arrays that follow a prefix.

    Raises:
        MessageRefusedError: if it is not a prefix, or a length exceeds the maximum.
    """
    try:
        magic, head, body = _PREFIX.unpack(prefix)
    except struct.error as error:
        raise MessageRefusedError(f"a frame starts with {PREFIX_BYTES} bytes, not {len(prefix)}") from error
    if magic != _MAGIC:
        raise MessageRefusedError("these bytes are not a frame of this version")
    _require_possible(head, body)
    return head, body


def read_lengths(frame: bytes) -> tuple[int, int]:
    """Return the lengths in bytes of a whole frame's head and arrays.

    Raises:
        MessageRefusedError: if these bytes are not exactly one frame.
    """
    head, body = read_prefix(frame[:PREFIX_BYTES])
    if len(frame) != PREFIX_BYTES + head + body:
        raise MessageRefusedError(f"a frame has {len(frame)} bytes; its prefix states {PREFIX_BYTES + head + body}")
    return head, body


def is_refusal(frame: bytes) -> bool:
    """Return whether a frame begins like a serialized refusal, without reading it."""
    return frame[PREFIX_BYTES:].startswith(_REFUSAL)


def _require_possible(head: int, body: int) -> None:
    if head > MAX_HEAD_BYTES or body > MAX_ARRAY_BYTES:
        maximum = f"{MAX_HEAD_BYTES} and {MAX_ARRAY_BYTES}"
        raise MessageRefusedError(f"a frame of {head} and {body} bytes; the maximum is {maximum}")
