"""The consortium's certificate authority: issue and revoke certificates, and list all of them (X.509, RFC 5280).

The authority is one folder that never goes to the server: ca.key (unencrypted, readable by its owner only), ca.crt, and
issued.jsonl with one line per certificate. Every kit is made from issued.jsonl. Anyone who reads ca.key can issue a
certificate for any site: keep the folder on an encrypted disk that is off the network. There is no hardware security
module, no intermediate authority and no revocation list. A revoked site is refused because the server's sites.json and
registrations exclude it.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ept_fed.config.consortium import is_address
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.pki.certificates import check_validity, common_name, fingerprint, parse_certificate, public_key
from ept_fed.pki.keys import new_key, parse_pkcs8, same_key, serialize_openssh_public, serialize_pkcs8
from ept_fed.storage.files import write_bytes, write_text

__all__ = ["Authority", "Issued"]

_BACKDATED = timedelta(hours=1)  # a hospital's clock may be behind the consortium's
_KEY_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


@dataclass(frozen=True)
class Issued:
    """One line of issued.jsonl: a certificate, its holder, and its dates."""

    schema: int
    serial: str
    who: str
    what: str
    not_before: str
    not_after: str
    fingerprint: str
    node: str | None
    certificate: str
    revoked: str | None

    def parse(self) -> x509.Certificate:
        """Return the parsed certificate."""
        return parse_certificate(self.certificate.encode(), f"issued.jsonl: {self.who}")


class Authority:
    """Issues the certificates of sites and server, and keeps the list of them."""

    def __init__(self, folder: Path, federation: str, now: datetime, days: int) -> None:
        """Open the authority in a folder, or create it there.

        Raises:
            InputRefusedError: if the folder holds another federation's authority, half of one, or one that has ended.
        """
        self._folder = folder
        self._federation = federation
        held = [(folder / name).exists() for name in ("ca.key", "ca.crt")]
        if not any(held):
            self._found(now, days)
        elif not all(held):
            fix = (
                "holds only one of ca.key and ca.crt; put the other back from your copy. If there is none, because "
                "provision was interrupted before it made any kit, delete the one that is there"
            )
            raise InputRefusedError([Problem("authority", str(folder), fix)])
        self._key = parse_pkcs8((folder / "ca.key").read_bytes(), "authority: ca.key")
        self.certificate = parse_certificate((folder / "ca.crt").read_bytes(), "authority: ca.crt")
        self.issued = _read_issued(folder / "issued.jsonl")
        problems = []
        if not same_key(self._key.public_key(), public_key(self.certificate)):
            problems.append(Problem("authority", str(folder), "ca.key is not the key of ca.crt; restore your copy"))
        if common_name(self.certificate) != _title(federation):
            fix = f"is not '{_title(federation)}': keep the federation's name, or name another folder with --out"
            problems.append(Problem("authority", common_name(self.certificate), fix))
        validity = check_validity(self.certificate, now)
        if validity.state in ("ended", "not yet"):
            fix = f"{validity.sentence}; create a new federation in another folder and hand out its kits"
            problems.append(Problem("authority", "ca.crt", fix))
        if problems:
            raise InputRefusedError(problems)

    def current(self, who: str, what: str) -> Issued | None:
        """Return the newest certificate of this kind that is not revoked, if there is one."""
        return next((line for line in reversed(self.issued) if _names(line, who, what) and not line.revoked), None)

    def latest(self, who: str, what: str) -> Issued | None:
        """Return the newest certificate of this kind, revoked or not."""
        return next((line for line in reversed(self.issued) if _names(line, who, what)), None)

    def knows(self, *keys: ec.EllipticCurvePublicKey) -> Issued | None:
        """Return the first certificate, revoked or not, that has one of these keys as its own key or as node key."""
        serialized = {serialize_openssh_public(key) for key in keys}
        for line in self.issued:
            if line.node in serialized or any(same_key(public_key(line.parse()), key) for key in keys):
                return line
        return None

    def issue_site(self, site: str, key: ec.EllipticCurvePublicKey, node: str, *, now: datetime, days: int) -> Issued:
        """Certify a site's key, and record its node's public key."""
        name = x509.UniformResourceIdentifier(f"urn:ept-fed:{self._federation}:{site}")
        return self._issue(site, "site", key, [name], ExtendedKeyUsageOID.CLIENT_AUTH, node, now, days)

    def issue_server(
        self, what: str, hosts: Sequence[str], key: ec.EllipticCurvePublicKey, *, now: datetime, days: int
    ) -> Issued:
        """Certify a key for TLS on these hosts; `what` is proxy or superlink."""
        names = [x509.IPAddress(ip_address(host)) if is_address(host) else x509.DNSName(host) for host in hosts]
        return self._issue("server", what, key, names, ExtendedKeyUsageOID.SERVER_AUTH, None, now, days)

    def revoke(self, who: str, what: str, now: datetime) -> tuple[str, ...]:
        """Revoke every certificate of this kind that is not revoked yet, and return their serial numbers."""
        serials = tuple(line.serial for line in self.issued if _names(line, who, what) and not line.revoked)
        stamp = _serialize_time(now)
        self.issued = tuple(replace(line, revoked=stamp) if line.serial in serials else line for line in self.issued)
        self._write()
        return serials

    def _found(self, now: datetime, days: int) -> None:
        key = new_key()
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _title(self._federation))])
        builder = _builder(subject, subject, key.public_key(), now, now + timedelta(days=days))
        certificate = (
            builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage("key_cert_sign", "crl_sign"), critical=True)
            .sign(key, hashes.SHA384())
        )
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        write_bytes(self._folder / "ca.key", serialize_pkcs8(key), mode=0o600)
        write_bytes(self._folder / "ca.crt", certificate.public_bytes(serialization.Encoding.PEM))

    def _issue(
        self,
        who: str,
        what: str,
        key: ec.EllipticCurvePublicKey,
        names: Sequence[x509.GeneralName],
        usage: x509.ObjectIdentifier,
        node: str | None,
        now: datetime,
        days: int,
    ) -> Issued:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, who if what == "site" else f"{who} {what}")])
        end = min(now + timedelta(days=days), self.certificate.not_valid_after_utc)
        start = max(now - _BACKDATED, self.certificate.not_valid_before_utc)
        issuer_key = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_key)
        certificate = (
            _builder(subject, self.certificate.subject, key, start + _BACKDATED, end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage("digital_signature"), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(authority, critical=False)
            .sign(self._key, hashes.SHA384())
        )
        line = Issued(
            schema=1,
            serial=f"{certificate.serial_number:040x}",
            who=who,
            what=what,
            not_before=_serialize_time(certificate.not_valid_before_utc),
            not_after=_serialize_time(certificate.not_valid_after_utc),
            fingerprint=fingerprint(certificate),
            node=node,
            certificate=certificate.public_bytes(serialization.Encoding.PEM).decode("ascii"),
            revoked=None,
        )
        self.issued = (*self.issued, line)
        self._write()
        return line

    def _write(self) -> None:
        write_text(self._folder / "issued.jsonl", "".join(json.dumps(asdict(line)) + "\n" for line in self.issued))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*wanted: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{name: name in wanted for name in _KEY_USAGES})


def _title(federation: str) -> str:
    return f"{federation} authority"


def _names(line: Issued, who: str, what: str) -> bool:
    return (line.who, line.what) == (who, what)


def _serialize_time(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")


def _read_issued(path: Path) -> tuple[Issued, ...]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = Issued(**json.loads(line))
            if entry.schema != 1:
                raise ValueError(f"schema {entry.schema}")
        except (TypeError, ValueError) as error:
            fix = f"cannot be read ({error}); restore your copy of the authority"
            raise InputRefusedError([Problem(f"authority: issued.jsonl, line {number}", line[:60], fix)]) from error
        found.append(entry)
    return tuple(found)
