"""Canonical JSON: one form per document, so that a signature covers every byte of a file that people can read."""

import json
from collections.abc import Mapping
from typing import Any

from ept_fed.errors import InputRefusedError, Problem

__all__ = ["parse_canonical", "serialize_canonical"]


def serialize_canonical(document: Mapping[str, Any]) -> bytes:
    """Return UTF-8 JSON with sorted keys, two spaces of indentation and a final newline.

    Raises:
        ValueError: for NaN and infinity, which JSON cannot hold.
    """
    text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


def parse_canonical(name: str, content: bytes) -> dict[str, Any]:
    """Read a document that `serialize_canonical` wrote; repeated keys and other forms are refused.

    Args:
        name: name of the file in a refusal.
        content: the whole file.

    Raises:
        InputRefusedError: for any other content.
    """
    try:
        document = json.loads(content.decode())
        canonical = isinstance(document, dict) and serialize_canonical(document) == content
    except (ValueError, RecursionError) as error:
        raise _refusal(name, content, "is not JSON") from error
    if not canonical:
        raise _refusal(name, content, "is not serialized as by ept-fed export: it was edited")
    return dict(document)


def _refusal(name: str, content: bytes, reason: str) -> InputRefusedError:
    fix = f"{reason}; get an unaltered copy of the bundle"
    return InputRefusedError([Problem(name, f"{len(content):,} bytes", fix)])
