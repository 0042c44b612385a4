"""Signatures of release bundles: ECDSA on P-384 with SHA-256, deterministic (RFC 6979).

Equal bundles have equal signatures. A signature shows that no byte changed since the holder of the key exported the
bundle. It does not show who holds that key (pin its public half, or compare its fingerprint over the telephone), that
the bundle is the newest one, or that the model is good. It does not encrypt the bundle.
"""

import base64
import hashlib
import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ept_fed.errors import InputRefusedError, Problem
from ept_fed.pki.keys import parse_pkcs8
from ept_fed.storage.canonical_json import parse_canonical, serialize_canonical
from ept_fed.storage.files import write_text

__all__ = ["fingerprint", "public_key_path", "read_private_key", "read_public_key", "sign", "verify", "write_key"]

_ALGORITHM = "ECDSA P-384 SHA-256"
_FILE = "signature.json"
_OTHERS_MAY = 0o077
_MAX_PEM_BYTES = 1 << 16


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """Return the SHA-256, in hex, of a public key (DER, SubjectPublicKeyInfo)."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def public_key_path(private: Path) -> Path:
    """Return the path of the public half that `write_key` writes: signing-key.pem -> signing-key.pub.pem."""
    return private.with_name(f"{private.stem}.pub.pem")


def write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    """Write a new private key that only its owner may read (0600), and the public half beside it.

    Raises:
        FileExistsError: if the file exists; a key is never replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())
    write_text(public_key_path(path), _serialize_public(key.public_key()))


def read_private_key(path: Path, field: str) -> ec.EllipticCurvePrivateKey:
    """Read an unencrypted P-384 key in PEM; `field` is its name in a refusal.

    Raises:
        InputRefusedError: if it is missing, another kind of key, encrypted, or readable by other users.
    """
    content = _read_pem(field, path)
    if os.name == "posix" and path.stat().st_mode & _OTHERS_MAY:
        raise _refusal(field, str(path), f"other users of this machine may read it; run: chmod 600 {path}")
    return parse_pkcs8(content, f"{field}: {path}")


def read_public_key(path: Path) -> ec.EllipticCurvePublicKey:
    """Read a P-384 public key in PEM, as `write_key` writes it.

    Raises:
        InputRefusedError: if it is missing or not such a key.
    """
    return _parse_public(_read_pem("--trust", path), "--trust", str(path))


def sign(content: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the bytes of the signature.json for a file's content."""
    public = key.public_key()
    signature = key.sign(content, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
    document = {
        "schema": 1,
        "algorithm": _ALGORITHM,
        "signature": base64.b64encode(signature).decode(),
        "public_key": _serialize_public(public),
        "fingerprint": fingerprint(public),
    }
    return serialize_canonical(document)


def verify(content: bytes, signature_file: bytes, trusted: ec.EllipticCurvePublicKey | None) -> str:
    """Check a signature.json against the signed content, and return the fingerprint of the key.

    Args:
        content: the signed content.
        signature_file: the whole signature.json.
        trusted: the only accepted key; None accepts any key, which detects damage but no forgery.

    Raises:
        InputRefusedError: if the signature does not verify, is of another key, or has another form.
    """
    document = parse_canonical(_FILE, signature_file)
    wanted = {"schema", "algorithm", "signature", "public_key", "fingerprint"}
    if set(document) != wanted or not all(isinstance(document[key], str) for key in wanted - {"schema"}):
        raise _refusal(_FILE, sorted(document), f"must hold exactly {', '.join(sorted(wanted))}")
    if (document["schema"], document["algorithm"]) != (1, _ALGORITHM) or isinstance(document["schema"], bool):
        found = f"schema {document['schema']}, {document['algorithm']}"
        raise _refusal(_FILE, found, f"this version reads schema 1, {_ALGORITHM}; update ept-fed")
    key = _parse_public(document["public_key"].encode(), f"{_FILE}: public_key", document["fingerprint"])
    if _serialize_public(key) != document["public_key"] or fingerprint(key) != document["fingerprint"]:
        raise _refusal(f"{_FILE}: fingerprint", document["fingerprint"], "is not that of its public key")
    if trusted is not None and fingerprint(trusted) != fingerprint(key):
        fix = f"is not the key of --trust ({fingerprint(trusted)}); ask the site which one is right"
        raise _refusal(f"{_FILE}: fingerprint", fingerprint(key), fix)
    try:
        signature = base64.b64decode(document["signature"], validate=True)
        if base64.b64encode(signature).decode() != document["signature"]:
            raise InvalidSignature
        key.verify(signature, content, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError) as error:
        fix = "does not match bundle.json: one of the two was altered; get an unaltered copy"
        raise _refusal(f"{_FILE}: signature", document["signature"][:16] + "…", fix) from error
    return fingerprint(key)


def _parse_public(content: bytes, field: str, value: str) -> ec.EllipticCurvePublicKey:
    try:
        key = serialization.load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _refusal(field, value, "is not a public key in PEM") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise _refusal(field, value, "is not a P-384 key")
    return key


def _serialize_public(key: ec.EllipticCurvePublicKey) -> str:
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return pem.decode("ascii")


def _read_pem(field: str, path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_PEM_BYTES)
    except OSError as error:
        raise _refusal(field, str(path), f"cannot be read ({error.strerror}); correct the path") from error


def _refusal(field: str, value: object, fix: str) -> InputRefusedError:
    return InputRefusedError([Problem(field, value, fix)])
