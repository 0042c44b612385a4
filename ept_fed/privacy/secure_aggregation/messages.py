"""Messages of secure aggregation as bytes: a fixed prefix, then an entry for each site concerned, by its position.

Each message has exactly one form as bytes: positions ascend, lengths are those of the kind, and nothing is left over.
The transport identifies the sender. An entry about another site is signed, encrypted or checked by that site.
"""

import struct
from collections.abc import Mapping
from enum import IntEnum

from ept_fed.privacy.secure_aggregation.masks import KEY_BYTES
from ept_fed.privacy.secure_aggregation.secret_sharing import SHARE_BYTES
from ept_fed.privacy.secure_aggregation.session import VERSION, AggregationSession
from ept_fed.protocol.messages import MessageRefusedError

__all__ = ["KEYS_BYTES", "MAX_CERTIFICATE_BYTES", "SIGNATURE_BYTES", "Kind", "decode_message", "encode_message"]

SIGNATURE_BYTES = 96  # two numbers of P-384
KEYS_BYTES = 3 * KEY_BYTES  # two public keys and a commitment
MAX_CERTIFICATE_BYTES = 4096
_ENCRYPTED_BYTES = 2 * SHARE_BYTES + 16
_PREFIX = struct.Struct("<4sBB32sH")
_ENTRY = struct.Struct("<HI")
_MAGIC = b"EPTA"


class Kind(IntEnum):
    """Kind of a message; odd kinds go to the server, even kinds to a site."""

    ADVERTISEMENT = 1
    ADVERTISEMENTS = 2
    SHARES = 3
    DELIVERY = 4
    MASKED_INPUT = 5
    SURVIVORS = 6
    CONFIRMATION = 7
    CONFIRMATIONS = 8
    UNMASKING = 9

    def __str__(self) -> str:
        return self.name.lower().replace("_", " ")


def encode_message(session: AggregationSession, kind: Kind, entries: Mapping[str, bytes]) -> bytes:
    """Return the bytes of a message with these entries, by site name."""
    parts = [_PREFIX.pack(_MAGIC, VERSION, kind, session.digest, len(entries))]
    for place, site in enumerate(session.sites):
        if site in entries:
            parts.append(_ENTRY.pack(place, len(entries[site])) + entries[site])
    return b"".join(parts)


def decode_message(session: AggregationSession, kind: Kind, content: bytes) -> dict[str, bytes]:
    """Return the entries of a message, by site name.

    Raises:
        MessageRefusedError: unless `encode_message` returns these bytes for this session and kind.
    """
    least, maximum = _sizes(session, kind)
    if not _PREFIX.size <= len(content) <= _PREFIX.size + len(session.sites) * (_ENTRY.size + maximum):
        raise MessageRefusedError(f"{len(content)} bytes are not a {kind} of this session")
    magic, version, found, digest, count = _PREFIX.unpack_from(content)
    if (magic, version) != (_MAGIC, VERSION):
        raise MessageRefusedError(f"these bytes are not a message of secure aggregation, version {VERSION}")
    if digest != session.digest:
        raise MessageRefusedError("it belongs to another run, round or attempt, or to another agreement")
    if found != kind:
        raise MessageRefusedError(f"expected a message of kind '{kind}', not of kind {found}")
    entries: dict[str, bytes] = {}
    start, last = _PREFIX.size, -1
    for _ in range(count):
        if len(content) - start < _ENTRY.size:
            raise MessageRefusedError(f"a {kind} is cut short")
        place, length = _ENTRY.unpack_from(content, start)
        start += _ENTRY.size
        if not last < place < len(session.sites):
            raise MessageRefusedError(f"a {kind} names sites out of order, twice, or none of this session")
        if not least <= length <= maximum or len(content) - start < length:
            raise MessageRefusedError(f"a {kind} has an entry of {length} bytes; each has {least} to {maximum}")
        entries[session.sites[place]] = content[start : start + length]
        start, last = start + length, place
    if start != len(content):
        raise MessageRefusedError(f"a {kind} has {len(content) - start} bytes too many")
    return entries


def _sizes(session: AggregationSession, kind: Kind) -> tuple[int, int]:
    """Return the minimum and maximum bytes of an entry."""
    advertised = KEYS_BYTES + SIGNATURE_BYTES
    exact = {
        Kind.SHARES: _ENCRYPTED_BYTES,
        Kind.DELIVERY: _ENCRYPTED_BYTES,
        Kind.MASKED_INPUT: session.words * session.encoding.dtype.itemsize,
        Kind.SURVIVORS: 0,
        Kind.CONFIRMATION: SIGNATURE_BYTES,
        Kind.CONFIRMATIONS: SIGNATURE_BYTES,
        Kind.UNMASKING: SHARE_BYTES,
    }
    if kind in exact:
        return exact[kind], exact[kind]
    return advertised + 1, advertised + MAX_CERTIFICATE_BYTES
