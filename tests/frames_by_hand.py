"""Frames built and parsed without `encode_frame`, as another sender might do it."""

import json
from typing import Any

from ept_fed.protocol.frame_prefix import _MAGIC, _PREFIX, PREFIX_BYTES, read_prefix

__all__ = ["frame_of", "head_of", "open_frame"]


def frame_of(document: Any, body: bytes = b"") -> bytes:
    """Return a frame of this version with any document as its head, valid or not."""
    # JSON can hold a lone surrogate and UTF-8 cannot, so it is written as its escape.
    head = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode(errors="backslashreplace")
    return _PREFIX.pack(_MAGIC, len(head), len(body)) + head + body


def open_frame(frame: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the head and the arrays of a frame."""
    length, _ = read_prefix(frame[:PREFIX_BYTES])
    document: dict[str, Any] = json.loads(frame[PREFIX_BYTES : PREFIX_BYTES + length])
    return document, frame[PREFIX_BYTES + length :]


def head_of(frame: bytes) -> dict[str, Any]:
    """Return the head of a frame."""
    return open_frame(frame)[0]
