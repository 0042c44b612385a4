"""X.509 certificates of a federation: reading, checks and validity dates; pure functions over bytes (RFC 5280).

A valid certificate shows that the consortium's authority certified this key for this site or host, until its end date.
It does not show that nobody else has the key. If somebody has, the consortium revokes the certificate, and the server
reads that in its sites.json. There is no revocation list for peers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address
from typing import Literal

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from ept_fed.errors import InputRefusedError, Problem

__all__ = [
    "NOTICE",
    "Validity",
    "check_validity",
    "common_name",
    "find_chain_problems",
    "fingerprint",
    "parse_certificate",
    "parse_der_certificate",
    "public_key",
]

NOTICE = timedelta(days=30)
_UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
_DAY = timedelta(days=1)


@dataclass(frozen=True)
class Validity:
    """Validity of a certificate at a moment; `days` until it ends are rounded down, and negative after the end."""

    state: Literal["not yet", "valid", "ending", "ended"]
    not_before: datetime
    not_after: datetime
    days: int

    @property
    def sentence(self) -> str:
        """Text for people that follows the name of the certificate."""
        day = self.not_after.date().isoformat()
        if self.state == "not yet":
            return f"is not valid before {self.not_before.isoformat()}: correct this machine's clock"
        if self.state == "ended":
            return f"ended on {day}"
        return f"ends on {day}, in {self.days} day{'' if self.days == 1 else 's'}"


def parse_certificate(content: bytes, name: str) -> x509.Certificate:
    """Read one certificate in PEM whose key is on P-384.

    Args:
        content: the whole file.
        name: its name in a refusal.

    Raises:
        InputRefusedError: for any other content, including several certificates.
    """
    try:
        found = x509.load_pem_x509_certificates(content)
        if len(found) == 1:
            _read_whole(found[0])
            return found[0]
    except _UNREADABLE as error:
        raise InputRefusedError([Problem(name, f"{len(content)} bytes", f"is not a certificate ({error})")]) from error
    raise InputRefusedError([Problem(name, f"{len(found)} certificates", "must hold exactly one")])


def parse_der_certificate(content: bytes, name: str) -> x509.Certificate:
    """Read one certificate in DER, its format in messages, whose key is on P-384.

    Raises:
        InputRefusedError: for any other content, under the given name.
    """
    try:
        certificate = x509.load_der_x509_certificate(content)
        _read_whole(certificate)
    except _UNREADABLE as error:
        raise InputRefusedError([Problem(name, f"{len(content)} bytes", f"is not a certificate ({error})")]) from error
    return certificate


def _read_whole(certificate: x509.Certificate) -> None:
    """Read every part that is used later: cryptography parses a part at its first access, and raises only then."""
    public_key(certificate)
    common_name(certificate)
    _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc, certificate.extensions


def public_key(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    """Return the public key of a certificate.

    Raises:
        ValueError: if it is not on P-384.
    """
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ValueError("its key is not on P-384")
    return key


def fingerprint(certificate: x509.Certificate) -> str:
    """Return the SHA-256 of a certificate (DER) in hex, as `openssl x509 -fingerprint -sha256` shows it."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def common_name(certificate: x509.Certificate) -> str:
    """Return the subject's common name; empty unless there is exactly one."""
    names = [str(name.value) for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    return names[0] if len(names) == 1 else ""


def check_validity(certificate: x509.Certificate, now: datetime, notice: timedelta = NOTICE) -> Validity:
    """Return the validity of a certificate at a moment.

    Args:
        certificate: any certificate.
        now: a time with time zone.
        notice: length of the period before the end in which the state is `ending`.
    """
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    state: Literal["not yet", "valid", "ending", "ended"]
    if now < start:
        state = "not yet"
    elif now > end:
        state = "ended"
    else:
        state = "ending" if end - now <= notice else "valid"
    return Validity(state, start, end, (end - now) // _DAY)


def find_chain_problems(
    certificate: x509.Certificate, authority: x509.Certificate, name: str, *, hosts: Sequence[str] = ()
) -> list[Problem]:
    """Check that the authority issued a certificate for its purpose; `check_validity` checks the dates.

    Args:
        certificate: of a server if `hosts` are given, otherwise of a site.
        authority: the consortium's certificate.
        name: name of the certificate in a problem.
        hosts: every DNS name and IP address that a server's certificate must cover.
    """
    moment = max(certificate.not_valid_before_utc, authority.not_valid_before_utc)
    policy = PolicyBuilder().store(Store([authority])).time(moment)
    found = []
    try:
        if not hosts:
            policy.build_client_verifier().verify(certificate, [])
        for host in hosts:
            policy.build_server_verifier(_serialize_host(host)).verify(certificate, [])
    except VerificationError as error:
        reason = " ".join(str(error).split())
        fix = f"was not issued for this by the authority of tls/ca.crt ({reason}); get the kit again"
        found.append(Problem(name, fingerprint(certificate)[:16] + "…", fix))
    return found


def _serialize_host(host: str) -> x509.DNSName | x509.IPAddress:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)
