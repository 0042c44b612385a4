"""Masks that cancel: X25519 (RFC 7748), HKDF-SHA256 (RFC 5869) and the keystream of ChaCha20 (RFC 8439).

A pair of sites agrees on a key. The site whose name sorts first adds the key's keystream, the other subtracts it. Every
key is used once: the `info` of its derivation names the purpose, and private keys exist for one attempt at one round.
"""

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ept_fed.privacy.secure_aggregation.fixed_point import Words
from ept_fed.protocol.messages import MessageRefusedError

__all__ = ["KEY_BYTES", "agree", "derive_key", "expand_mask", "public_bytes", "signed_mask"]

KEY_BYTES = 32
_FIRST_BLOCK = bytes(16)


def public_bytes(private: bytes) -> bytes:
    """Return the X25519 public key of 32 private bytes."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agree(private: bytes, public: bytes, info: bytes) -> bytes:
    """Return the key that two sites share for one purpose.

    Raises:
        MessageRefusedError: if the other's public key is a point of small order, which would make the key public.
    """
    try:
        secret = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise MessageRefusedError("a public key that no site can have made") from error
    return derive_key(secret, info)


def derive_key(secret: bytes, info: bytes) -> bytes:
    """Return a key of 32 bytes for the purpose that `info` names."""
    return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=None, info=info).derive(secret)


def expand_mask(key: bytes, words: int, dtype: np.dtype[np.unsignedinteger]) -> Words:
    """Return a mask (words,): the first bytes of the key's keystream; equal keys give equal masks."""
    stream = Cipher(ChaCha20(key, _FIRST_BLOCK), mode=None).encryptor().update(bytes(words * dtype.itemsize))
    return np.frombuffer(stream, dtype=dtype)


def signed_mask(mask: Words, own: str, other: str) -> Words:
    """Return the words that site `own` adds for its pair with `other`: the mask, or its negative modulo 2^bits."""
    if own == other:
        raise ValueError("a site cannot form a pair with itself")
    return mask if own < other else np.negative(mask)
