"""Signatures of a site's advertisement and confirmation, with its certificate's key (ECDSA, P-384, SHA-384).

The server has no such key. It can neither sign for a site nor insert keys of its own between two sites.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from ept_fed.errors import InputRefusedError
from ept_fed.pki.certificates import check_validity, common_name, find_chain_problems, parse_der_certificate, public_key
from ept_fed.privacy.secure_aggregation.masks import KEY_BYTES
from ept_fed.privacy.secure_aggregation.messages import KEYS_BYTES, SIGNATURE_BYTES
from ept_fed.privacy.secure_aggregation.session import AggregationSession, serialize
from ept_fed.protocol.messages import MessageRefusedError

__all__ = ["Advertisement", "advertise", "commit", "read_advertisement", "sign", "statement", "verify"]

_NUMBER_BYTES = SIGNATURE_BYTES // 2


@dataclass(frozen=True)
class Advertisement:
    """The keys of a site for one session, signed by its certified key.

    Attributes:
        channel: public key with which other sites encrypt shares for this site.
        mask: public key of its pair masks with other sites.
        commitment: commitment to the seed of its own mask.
        identity: public key of its certificate.
    """

    channel: bytes
    mask: bytes
    commitment: bytes
    identity: ec.EllipticCurvePublicKey


def commit(session: AggregationSession, site: str, seed: bytes) -> bytes:
    """Return the commitment to a site's seed: it reveals wrong shares, and the 256 random bits keep the seed hidden."""
    return hashlib.sha256(serialize(session.bind("commitment", site), seed)).digest()


def advertise(
    session: AggregationSession,
    site: str,
    *,
    channel: bytes,
    mask: bytes,
    commitment: bytes,
    key: ec.EllipticCurvePrivateKey,
    certificate: x509.Certificate,
) -> bytes:
    """Return two public keys and a commitment, their signature, and the certificate, concatenated."""
    keys = channel + mask + commitment
    named = certificate.public_bytes(Encoding.DER)
    return keys + sign(key, serialize(session.bind("advertisement", site), keys, named)) + named


def read_advertisement(
    session: AggregationSession, site: str, content: bytes, *, authority: x509.Certificate, now: datetime
) -> Advertisement:
    """Verify a site's certificate and signature, and return its advertisement.

    Raises:
        MessageRefusedError: naming the site and the fault.
    """
    keys, rest = content[:KEYS_BYTES], content[KEYS_BYTES:]
    signature, named = rest[:SIGNATURE_BYTES], rest[SIGNATURE_BYTES:]
    try:
        certificate = parse_der_certificate(named, site)
    except InputRefusedError as error:
        raise MessageRefusedError(f"{site}: its certificate cannot be read") from error
    if common_name(certificate) != site:
        raise MessageRefusedError(f"{site}: its certificate names another site")
    if find_chain_problems(certificate, authority, site):
        raise MessageRefusedError(f"{site}: its certificate is not the consortium's")
    validity = check_validity(certificate, now)
    if validity.state in ("ended", "not yet"):
        raise MessageRefusedError(f"{site}: its certificate {validity.sentence}")
    identity = public_key(certificate)
    if not verify(identity, signature, serialize(session.bind("advertisement", site), keys, named)):
        raise MessageRefusedError(f"{site}: its keys are not signed by its certificate's key")
    channel, mask, commitment = (keys[start : start + KEY_BYTES] for start in range(0, KEYS_BYTES, KEY_BYTES))
    return Advertisement(channel, mask, commitment, identity)


def statement(
    session: AggregationSession, advertisements: bytes, members: Iterable[str], survivors: Iterable[str]
) -> bytes:
    """Return the content that survivors sign: the received keys, the sites with pair masks, and the sites of the sum.

    If a server sends different information to two sites, their signatures do not match.
    """
    told = hashlib.sha256(advertisements).digest()
    return serialize(session.bind("survivors"), told, serialize(*sorted(members)), serialize(*sorted(survivors)))


def sign(key: ec.EllipticCurvePrivateKey, content: bytes) -> bytes:
    """Return a signature of fixed length."""
    r, s = decode_dss_signature(key.sign(content, ec.ECDSA(hashes.SHA384())))
    return r.to_bytes(_NUMBER_BYTES, "big") + s.to_bytes(_NUMBER_BYTES, "big")


def verify(key: ec.EllipticCurvePublicKey, signature: bytes, content: bytes) -> bool:
    """Return whether a signature of `sign` was made by this key over this content."""
    r, s = (int.from_bytes(signature[start:][:_NUMBER_BYTES], "big") for start in (0, _NUMBER_BYTES))
    try:
        key.verify(encode_dss_signature(r, s), content, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        return False
    return True
