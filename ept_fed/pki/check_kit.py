"""Checks that a kit is complete, private and in date: a site's kit, the server's kit, or the authority's folder.

The checks cover checksums, permissions, dates, the chain to tls/ca.crt, and that each private key fits its certificate.
All faults are reported at once. The checks compare a kit only with itself: people have to compare its ca.crt with the
consortium's own.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, TypeVar

from cryptography import x509

from ept_fed.config.consortium import load_federation
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.pki.certificates import (
    check_validity,
    common_name,
    find_chain_problems,
    fingerprint,
    parse_certificate,
    public_key,
)
from ept_fed.pki.keys import parse_openssh_private, parse_openssh_public, parse_pkcs8, same_key
from ept_fed.pki.kit_layout import (
    CHECKSUMS,
    EDITED,
    OTHERS_MAY,
    OTHERS_MAY_ENTER,
    PRIVATE_KEYS,
    SUPERLINK_HOSTS,
    parse_checksums,
    read_identity,
)

__all__ = ["CertificateDates", "KitExamination", "examine_kit"]

_Parsed = TypeVar("_Parsed")

_AGAIN = "get the kit again"


@dataclass(frozen=True)
class CertificateDates:
    """End date of a certificate in the kit, the days until then, and its SHA-256 in hex."""

    file: str
    not_after: datetime
    days: int
    fingerprint: str


@dataclass
class KitExamination:
    """Result of the checks: `faults` must be corrected now, `notices` soon or by somebody else."""

    kind: Literal["site", "server", "authority"]
    name: str
    faults: list[Problem] = field(default_factory=list)
    notices: list[Problem] = field(default_factory=list)
    certificates: list[CertificateDates] = field(default_factory=list)

    @property
    def status(self) -> str:
        """Return faults, notice or sound."""
        return "faults" if self.faults else "notice" if self.notices else "sound"

    def to_json(self) -> dict[str, Any]:
        """Return the result as a JSON document."""

        def serialize(problems: list[Problem]) -> list[dict[str, str]]:
            return [{"field": p.field, "value": str(p.value), "fix": p.fix} for p in problems]

        return {
            "schema": 1,
            "status": self.status,
            "kind": self.kind,
            "name": self.name,
            "faults": serialize(self.faults),
            "notices": serialize(self.notices),
            "certificates": [
                {
                    "file": dates.file,
                    "not_after": dates.not_after.isoformat(),
                    "days": dates.days,
                    "fingerprint": dates.fingerprint,
                }
                for dates in self.certificates
            ],
        }


def examine_kit(kit: Path, now: datetime) -> KitExamination:
    """Check a kit without changing it.

    Args:
        kit: its folder: kits/sites/<site>, kits/server or kits/authority, or a copy of one of them.
        now: a time with time zone.

    Raises:
        InputRefusedError: if the folder is not a kit.
    """
    if (kit / "federation.json").exists():
        return _examine_site(kit, now)
    if (kit / "sites.json").exists():
        return _examine_server(kit, now)
    if (kit / "ca.crt").exists():
        return _examine_authority(kit, now)
    fix = "is not a kit: it has neither federation.json (a site's), nor sites.json (the server's), nor ca.crt"
    raise InputRefusedError([Problem("DIR", str(kit), fix)])


def _examine_site(kit: Path, now: datetime) -> KitExamination:
    identity = read_identity(kit)
    found = KitExamination("site", identity.site)
    ask = f"ask the consortium for ept-fed provision renew {identity.site}"
    _check_files(found, kit)
    found.faults += [
        Problem(name, "missing", "put your edited file back, or take the template from the kit's zip")
        for name in EDITED
        if not (kit / name).exists()
    ]
    authority = _read(found, kit, "tls/ca.crt", parse_certificate)
    certificate = _read(found, kit, "tls/site.crt", parse_certificate)
    _check_dates(found, "tls/ca.crt", authority, now, "ask the consortium for the kit of a new federation")
    _check_dates(found, "tls/site.crt", certificate, now, ask)
    if certificate is not None and common_name(certificate) != identity.site:
        fix = f"is not '{identity.site}', the site in federation.json; {_AGAIN}"
        found.faults.append(Problem("tls/site.crt", common_name(certificate), fix))
    if authority is not None and certificate is not None:
        found.faults += find_chain_problems(certificate, authority, "tls/site.crt")
    key = _read(found, kit, "keys/site.key", parse_pkcs8)
    if key is not None and certificate is not None and not same_key(key.public_key(), public_key(certificate)):
        found.faults.append(Problem("keys/site.key", "another key", f"is not the key of tls/site.crt; {_AGAIN}"))
    node = _read(found, kit, "keys/node", parse_openssh_private)
    public = _read(found, kit, "keys/node.pub", parse_openssh_public)
    if node is not None and public is not None and not same_key(node.public_key(), public):
        found.faults.append(Problem("keys/node", "another key", f"is not the key of keys/node.pub; {_AGAIN}"))
    return found


def _examine_server(kit: Path, now: datetime) -> KitExamination:
    federation = load_federation(kit / "federation.yaml")
    found = KitExamination("server", federation.name)
    _check_files(found, kit)
    authority = _read(found, kit, "tls/ca.crt", parse_certificate)
    _check_dates(found, "tls/ca.crt", authority, now, "create a new federation before that")
    for what, hosts in (("proxy", (federation.server.host,)), ("superlink", SUPERLINK_HOSTS)):
        name = f"tls/{what}.crt"
        certificate = _read(found, kit, name, parse_certificate)
        _check_dates(found, name, certificate, now, "run ept-fed provision renew --server")
        if authority is not None and certificate is not None:
            found.faults += find_chain_problems(certificate, authority, name, hosts=hosts)
        key = _read(found, kit, f"tls/{what}.key", parse_pkcs8)
        if key is not None and certificate is not None and not same_key(key.public_key(), public_key(certificate)):
            found.faults.append(Problem(f"tls/{what}.key", "another key", f"is not the key of {name}; {_AGAIN}"))
    return found


def _examine_authority(folder: Path, now: datetime) -> KitExamination:
    certificate = parse_certificate((folder / "ca.crt").read_bytes(), "ca.crt")
    found = KitExamination("authority", common_name(certificate))
    _check_dates(found, "ca.crt", certificate, now, "create a new federation before that")
    _check_permissions(found, folder)
    key = _read(found, folder, "ca.key", parse_pkcs8)
    if key is not None and not same_key(key.public_key(), public_key(certificate)):
        found.faults.append(Problem("ca.key", "another key", "is not the key of ca.crt; restore your copy"))
    return found


def _check_files(found: KitExamination, kit: Path) -> None:
    try:
        listed = parse_checksums((kit / CHECKSUMS).read_bytes())
    except OSError:
        listed = {}
        found.faults.append(Problem(CHECKSUMS, "missing", _AGAIN))
    except InputRefusedError as refusal:
        listed = {}
        found.faults += refusal.problems
    for name, expected in listed.items():
        try:
            actual = sha256((kit / name).read_bytes()).hexdigest()
        except OSError as error:
            found.faults.append(Problem(name, "missing", f"cannot be read ({error.strerror}); {_AGAIN}"))
            continue
        if actual != expected:
            found.faults.append(Problem(name, f"{actual[:16]}…", f"was altered since the kit was made; {_AGAIN}"))
    _check_permissions(found, kit)


def _check_permissions(found: KitExamination, kit: Path) -> None:
    if os.name != "posix":
        return
    for name in PRIVATE_KEYS:
        path = kit / name
        if _exists(path) and path.stat().st_mode & OTHERS_MAY:
            mode = f"{path.stat().st_mode & 0o777:04o}"
            found.faults.append(Problem(name, mode, f"other users may read this key; run: chmod 600 {name}"))
    for folder in sorted({(kit / name).parent for name in PRIVATE_KEYS if _exists(kit / name)}):
        if folder.stat().st_mode & OTHERS_MAY_ENTER:
            mode = f"{folder.stat().st_mode & 0o777:04o}"
            name = folder.relative_to(kit).as_posix()
            fix = f"other users may list or change the keys in it; run: chmod 711 {name}"
            found.faults.append(Problem(f"{name}/", mode, fix))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:
        return False


def _check_dates(
    found: KitExamination, name: str, certificate: x509.Certificate | None, now: datetime, act: str
) -> None:
    if certificate is None:
        return
    validity = check_validity(certificate, now)
    found.certificates.append(CertificateDates(name, validity.not_after, validity.days, fingerprint(certificate)))
    if validity.state in ("ended", "not yet"):
        fix = validity.sentence if validity.state == "not yet" else f"{validity.sentence}; {act}"
        found.faults.append(Problem(name, validity.not_after.date().isoformat(), fix))
    elif validity.state == "ending":
        found.notices.append(Problem(name, validity.not_after.date().isoformat(), f"{validity.sentence}; {act}"))


def _read(found: KitExamination, kit: Path, name: str, parse: Callable[[bytes, str], _Parsed]) -> _Parsed | None:
    """Read one file of the kit, or record why that failed; a key of another user is a notice, not a fault."""
    try:
        return parse((kit / name).read_bytes(), name)
    except PermissionError:
        note = "cannot be read by this user, so it was not checked"
        found.notices.append(Problem(name, "another user's", note))
    except OSError as error:
        if not any(fault.field == name for fault in found.faults):
            found.faults.append(Problem(name, "missing", f"cannot be read ({error.strerror}); {_AGAIN}"))
    except InputRefusedError as refusal:
        found.faults += refusal.problems
    return None
