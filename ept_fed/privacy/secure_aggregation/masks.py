"""Masks that cancel: X25519 (RFC 7748), HKDF-SHA256 (RFC 5869) and the keystream of ChaCha20 (RFC 8439).

A pair of sites agrees on a key; the one whose name sorts first adds its keystream, the other subtracts it. Every key
serves once: the `info` of its derivation says for what, and the private keys live for one attempt at one round.
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
    """Return the key that two sites have in common for one purpose.

    Raises:
        MessageRefusedError: if the other's is a point of small order, which would make the key known to everybody.
    """
    try:
        secret = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise MessageRefusedError("a public key that no site can have made") from error
    return derive_key(secret, info)


def derive_key(secret: bytes, info: bytes) -> bytes:
    """Return 32 bytes for one purpose, said in `info`."""
    return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=None, info=info).derive(secret)


def expand_mask(key: bytes, words: int, dtype: np.dtype[np.unsignedinteger]) -> Words:
    """Return a mask (words,): the first bytes of the key's keystream. A second call gives the same."""
    stream = Cipher(ChaCha20(key, _FIRST_BLOCK), mode=None).encryptor().update(bytes(words * dtype.itemsize))
    return np.frombuffer(stream, dtype=dtype)


def signed_mask(mask: Words, own: str, other: str) -> Words:
    """Return what site `own` adds for its pair with `other`: the mask, or its negative modulo 2^bits."""
    if own == other:
        raise ValueError("a site makes no pair with itself")
    return mask if own < other else np.negative(mask)
