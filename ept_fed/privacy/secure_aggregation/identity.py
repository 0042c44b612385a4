"""Who says so: what a site advertises and confirms is signed with the key of its certificate (ECDSA, P-384, SHA-384).

The server has no such key, so it can neither speak for a site nor put keys of its own between two sites.
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
    """The keys of a site for one session, as its certified key signed them.

    Attributes:
        channel: public key under which shares are encrypted for this site.
        mask: public key of its masks with others.
        commitment: to the seed of its own mask.
        identity: the certificate's key.
    """

    channel: bytes
    mask: bytes
    commitment: bytes
    identity: ec.EllipticCurvePublicKey


def commit(session: AggregationSession, site: str, seed: bytes) -> bytes:
    """Return the commitment to a site's seed, which shows wrong shares of it; the seed's 256 bits hide it."""
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
    """Return two public keys and a commitment, signed, with the certificate behind them."""
    keys = channel + mask + commitment
    named = certificate.public_bytes(Encoding.DER)
    return keys + sign(key, serialize(session.bind("advertisement", site), keys, named)) + named


def read_advertisement(
    session: AggregationSession, site: str, content: bytes, *, authority: x509.Certificate, now: datetime
) -> Advertisement:
    """Return what a site advertised, once its certificate and signature are verified.

    Raises:
        MessageRefusedError: naming the site and what is wrong.
    """
    keys, rest = content[:KEYS_BYTES], content[KEYS_BYTES:]
    signature, named = rest[:SIGNATURE_BYTES], rest[SIGNATURE_BYTES:]
    try:
        certificate = parse_der_certificate(named, site)
    except InputRefusedError as error:
        raise MessageRefusedError(f"{site}: its certificate cannot be read") from error
    if common_name(certificate) != site:
        raise MessageRefusedError(f"{site}: its certificate names another")
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
    """Return what survivors sign: the keys that they were told, whose pairs are masked, and whose inputs are summed.

    A server that told two sites different things gets no signatures that fit together.
    """
    told = hashlib.sha256(advertisements).digest()
    return serialize(session.bind("survivors"), told, serialize(*sorted(members)), serialize(*sorted(survivors)))


def sign(key: ec.EllipticCurvePrivateKey, content: bytes) -> bytes:
    """Return a signature of fixed length."""
    r, s = decode_dss_signature(key.sign(content, ec.ECDSA(hashes.SHA384())))
    return r.to_bytes(_NUMBER_BYTES, "big") + s.to_bytes(_NUMBER_BYTES, "big")


def verify(key: ec.EllipticCurvePublicKey, signature: bytes, content: bytes) -> bool:
    """Tell whether a signature of `sign` is this key's over this content."""
    r, s = (int.from_bytes(signature[start:][:_NUMBER_BYTES], "big") for start in (0, _NUMBER_BYTES))
    try:
        key.verify(encode_dss_signature(r, s), content, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        return False
    return True
