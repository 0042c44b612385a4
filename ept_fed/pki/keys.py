"""Private and public keys on P-384: PKCS8 PEM for sites and TLS, OpenSSH for Flower's node authentication.

Keys come from the operating system's cryptographic source. They are stored unencrypted, because services start without
a person: anyone who can read the file has the key.
"""

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ept_fed.errors import InputRefusedError, Problem

__all__ = [
    "new_key",
    "parse_openssh_private",
    "parse_openssh_public",
    "parse_pkcs8",
    "same_key",
    "serialize_openssh_private",
    "serialize_openssh_public",
    "serialize_pkcs8",
]

_PEM, _OPENSSH = serialization.Encoding.PEM, serialization.Encoding.OpenSSH
# TypeError: the key is encrypted. NotImplementedError: a compressed point in OpenSSH's format.
_UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm, NotImplementedError)


def new_key() -> ec.EllipticCurvePrivateKey:
    """Return a fresh P-384 key."""
    return ec.generate_private_key(ec.SECP384R1())


def serialize_pkcs8(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as PKCS8 PEM."""
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def serialize_openssh_private(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as `ssh-keygen -t ecdsa -b 384` writes it; the bytes differ from call to call."""
    return key.private_bytes(_PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())


def serialize_openssh_public(key: ec.EllipticCurvePublicKey) -> str:
    """Return a public key as `ecdsa-sha2-nistp384 …`, without comment and newline."""
    return key.public_bytes(_OPENSSH, serialization.PublicFormat.OpenSSH).decode("ascii")


def parse_pkcs8(content: bytes, name: str) -> ec.EllipticCurvePrivateKey:
    """Read an unencrypted P-384 key in PEM.

    Raises:
        InputRefusedError: for any other content, under the given name.
    """
    try:
        return _on_p384(serialization.load_pem_private_key(content, password=None))
    except _UNREADABLE as error:
        raise _refusal(name, content, "an unencrypted P-384 private key in PEM") from error


def parse_openssh_private(content: bytes, name: str) -> ec.EllipticCurvePrivateKey:
    """Read an unencrypted P-384 key in OpenSSH's format, as Flower's SuperNode does.

    Raises:
        InputRefusedError: for any other content, under the given name.
    """
    try:
        return _on_p384(serialization.load_ssh_private_key(content, password=None))
    except _UNREADABLE as error:
        raise _refusal(name, content, "an unencrypted P-384 private key of OpenSSH") from error


def parse_openssh_public(content: bytes, name: str) -> ec.EllipticCurvePublicKey:
    """Read a public key from a line `ecdsa-sha2-nistp384 …`.

    Raises:
        InputRefusedError: for any other content, under the given name.
    """
    try:
        key = serialization.load_ssh_public_key(content)
        if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1):
            return key
    except _UNREADABLE as error:
        raise _refusal(name, content, "a line ecdsa-sha2-nistp384 …") from error
    raise _refusal(name, content, "a line ecdsa-sha2-nistp384 …")


def same_key(one: ec.EllipticCurvePublicKey, other: ec.EllipticCurvePublicKey) -> bool:
    """Return whether two public keys are the same point."""
    return one.public_numbers() == other.public_numbers()


def _on_p384(key: object) -> ec.EllipticCurvePrivateKey:
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ValueError("not on P-384")
    return key


def _refusal(name: str, content: bytes, wanted: str) -> InputRefusedError:
    return InputRefusedError([Problem(name, f"{len(content)} bytes", f"is not {wanted}")])
