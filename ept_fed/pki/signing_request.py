"""The certificate request of a site that makes its own keys: one file, signed by both keys.

The request contains a certificate signing request (RFC 2986) for the site's key, and the node's public key. Each key
signs the whole content. This proves that the requester holds both private keys, and that nobody altered the request
since. It does not prove who the requester is: compare the fingerprint over the telephone before you approve it.
"""

import base64
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ept_fed.errors import InputRefusedError, Problem
from ept_fed.pki.keys import parse_openssh_public, same_key, serialize_openssh_public

__all__ = ["MAX_REQUEST_BYTES", "KeyRequest", "make_key_request", "parse_key_request"]

MAX_REQUEST_BYTES = 1 << 16
_PURPOSE = "ept-fed key request"
_SIGNED = ("purpose", "schema", "site", "csr", "node")
_ALTERED = "was altered, or the site does not hold the key; let the site make a new request"


@dataclass(frozen=True)
class KeyRequest:
    """A request with valid signatures."""

    site: str
    site_key: ec.EllipticCurvePublicKey
    node_key: ec.EllipticCurvePublicKey
    fingerprint: str


def make_key_request(site: str, site_key: ec.EllipticCurvePrivateKey, node_key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the bytes of a site's request file.

    Args:
        site: name, as in federation.yaml.
        site_key: signs the ledger; never leaves the site.
        node_key: authenticates the node to Flower; never leaves the site.
    """
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, site)])
    csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(site_key, hashes.SHA384())
    document: dict[str, Any] = {
        "purpose": _PURPOSE,
        "schema": 1,
        "site": site,
        "csr": csr.public_bytes(serialization.Encoding.PEM).decode("ascii"),
        "node": serialize_openssh_public(node_key.public_key()),
    }
    content = _canonical(document)
    document["signatures"] = {name: _sign(content, key) for name, key in (("site", site_key), ("node", node_key))}
    return (json.dumps(document, indent=2) + "\n").encode()


def parse_key_request(content: bytes) -> KeyRequest:
    """Read a request and check both proofs of possession.

    Raises:
        InputRefusedError: unless it is an unaltered request.
    """
    try:
        document = json.loads(content[:MAX_REQUEST_BYTES])
    except (ValueError, RecursionError) as error:
        raise _refusal("request", f"{len(content)} bytes", "is not a request of ept-fed provision request") from error
    signatures = document.get("signatures") if isinstance(document, dict) else None
    texts = {key: document.get(key) for key in ("purpose", "site", "csr", "node")} if signatures else {}
    if (
        not isinstance(signatures, dict)
        or set(document) != {*_SIGNED, "signatures"}
        or set(signatures) != {"site", "node"}
        or not all(isinstance(value, str) for value in (*texts.values(), *signatures.values()))
        or (texts["purpose"], document["schema"]) != (_PURPOSE, 1)
    ):
        raise _refusal("request", f"{len(content)} bytes", "is not a request of ept-fed provision request")
    try:
        csr = x509.load_pem_x509_csr(texts["csr"].encode())
        site_key = csr.public_key()
        names = [str(name.value) for name in csr.subject]
        sound = csr.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise _refusal("request: csr", texts["site"], f"cannot be read ({error})") from error
    if not isinstance(site_key, ec.EllipticCurvePublicKey) or not isinstance(site_key.curve, ec.SECP384R1):
        raise _refusal("request: csr", texts["site"], "its key is not on P-384")
    if names != [texts["site"]]:
        raise _refusal("request: csr", names, f"names another site than the request, which is for '{texts['site']}'")
    node_key = parse_openssh_public(texts["node"].encode(errors="replace"), "request: node")
    if same_key(site_key, node_key):
        raise _refusal("request: node", texts["site"], "is the site's key too; each purpose needs its own key")
    signed = _canonical({key: document[key] for key in _SIGNED})
    for name, key in (("site", site_key), ("node", node_key)):
        if not sound or not _verifies(signed, signatures[name], key):
            raise _refusal(f"request: signature of the {name} key", texts["site"], _ALTERED)
    return KeyRequest(texts["site"], site_key, node_key, hashlib.sha256(signed).hexdigest())


def _canonical(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _sign(content: bytes, key: ec.EllipticCurvePrivateKey) -> str:
    return base64.b64encode(key.sign(content, ec.ECDSA(hashes.SHA384()))).decode("ascii")


def _verifies(content: bytes, signature: str, key: ec.EllipticCurvePublicKey) -> bool:
    try:
        key.verify(base64.b64decode(signature, validate=True), content, ec.ECDSA(hashes.SHA384()))
    except (InvalidSignature, ValueError):
        return False
    return True


def _refusal(field: str, value: object, fix: str) -> InputRefusedError:
    return InputRefusedError([Problem(field, value, fix)])
