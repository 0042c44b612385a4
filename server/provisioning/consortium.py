"""The folder of all kits, opened for one operation: it updates every kit to the certificates of the authority."""

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ept_fed.config.consortium import Federation, load_federation
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.pki.certificates import check_validity, public_key
from ept_fed.pki.keys import parse_openssh_public, serialize_openssh_public
from ept_fed.pki.kit_layout import KEYS_OF_SERVER, KEYS_OF_SITE, SUPERLINK_HOSTS, KitFile
from server.provisioning.authority import Authority, Issued
from server.provisioning.kit_folder import delete_file, make_key, read_private_keys, write_file, write_kit
from server.provisioning.kits import ServerCertificates, render_server_kit, render_site_kit, zip_kit

__all__ = ["Consortium", "Provisioned", "SiteKit", "open_consortium", "reopen_consortium"]

_State = Literal["complete", "without keys", "handed over", "waits for its request", "revoked"]


@dataclass(frozen=True)
class SiteKit:
    """State of a site's kit: `complete` and `without keys` are here, `handed over` is not, the others have no kit."""

    name: str
    state: _State
    not_after: str | None
    days: int | None


@dataclass(frozen=True)
class Provisioned:
    """Result of an operation; `changed` lists the files written or deleted, in this order."""

    kits: Path
    federation: str
    sites: tuple[SiteKit, ...]
    server_state: _State
    server_not_after: str
    changed: tuple[Path, ...]
    notices: tuple[str, ...]


@dataclass
class Consortium:
    """The folder of all kits, opened for one operation."""

    kits: Path
    source: bytes
    federation: Federation
    authority: Authority
    now: datetime
    changed: list[Path] = field(default_factory=list)
    issued_now: set[str] = field(default_factory=set)

    def site_folder(self, site: str) -> Path:
        """Return the folder of a site's kit."""
        return self.kits / "sites" / site

    @property
    def server_folder(self) -> Path:
        """Folder of the server's kit."""
        return self.kits / "server"

    def certify_site(self, site: str, keys: tuple[ec.EllipticCurvePublicKey, ec.EllipticCurvePublicKey]) -> None:
        """Issue a certificate for a site's keys, given as (node, site)."""
        node, key = keys
        days = self.federation.certificate_days
        self.authority.issue_site(site, key, serialize_openssh_public(node), now=self.now, days=days)
        self.issued_now.add(site)

    def certify_server(self, what: str, key: ec.EllipticCurvePublicKey) -> None:
        """Issue a certificate for the proxy or the SuperLink."""
        hosts = (self.federation.server.host,) if what == "proxy" else SUPERLINK_HOSTS
        days = self.federation.certificate_days
        self.authority.issue_server(what, hosts, key, now=self.now, days=days)

    def bring_up_to_date(self) -> Provisioned:
        """Update every kit in this folder, and return the state of all kits."""
        authority = self.authority
        ca = authority.certificate.public_bytes(serialization.Encoding.PEM)
        certificates = _server_certificates(self)
        names = dict.fromkeys([site.name for site in self.federation.sites])
        names |= dict.fromkeys(line.who for line in authority.issued if line.what == "site")
        latest = {name: line for name in names if (line := authority.latest(name, "site")) is not None}
        sites = []
        for name in names:
            line = latest.get(name)
            state = _write_site(self, line, ca) if line is not None else "waits for its request"
            days = None if line is None else check_validity(line.parse(), self.now).days
            sites.append(SiteKit(name, state, None if line is None else line.not_after, days))
        server_state = _write_server(self, latest, certificates, ca)
        return Provisioned(
            kits=self.kits,
            federation=self.federation.name,
            sites=tuple(sites),
            server_state=server_state,
            server_not_after=certificates.proxy.not_after,
            changed=tuple(self.changed),
            notices=_find_notices(self, latest, certificates),
        )


def open_consortium(kits: Path, source: bytes, federation: Federation, now: datetime) -> Consortium:
    """Open the folder for a federation; create its authority if there is none. Refusals are as in `Authority`."""
    authority = Authority(kits / "authority", federation.name, now, federation.authority_days)
    return Consortium(kits, source, federation, authority, now)


def reopen_consortium(kits: Path, now: datetime) -> Consortium:
    """Open a folder that `provision` has filled before.

    Raises:
        InputRefusedError: if it has no kits, or as in `Authority`.
    """
    path = kits / "server" / "federation.yaml"
    if not path.exists() or not (kits / "authority" / "ca.key").exists():
        fix = "holds no kits and authority; run ept-fed provision federation.yaml --out there first"
        raise InputRefusedError([Problem("--kits", str(kits), fix)])
    return open_consortium(kits, path.read_bytes(), load_federation(path), now)


def _server_certificates(consortium: Consortium) -> ServerCertificates:
    """Return the server's certificates; issue those that are missing or are for another host."""
    for what, name in KEYS_OF_SERVER.items():
        current = consortium.authority.current("server", what)
        if current is None:
            consortium.certify_server(what, make_key(consortium.server_folder, name).public_key())
            consortium.changed.append(consortium.server_folder / name)
        elif what == "proxy" and _hosts(current.parse()) != {consortium.federation.server.host}:
            consortium.certify_server(what, public_key(current.parse()))
    proxy, superlink = (consortium.authority.current("server", what) for what in KEYS_OF_SERVER)
    if proxy is None or superlink is None:
        raise ValueError("the authority has just issued both certificates of the server")
    return ServerCertificates(proxy, superlink)


def _hosts(certificate: x509.Certificate) -> set[str]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in names}


def _write_site(consortium: Consortium, issued: Issued, ca: bytes) -> _State:
    """Write a site's folder and zip, unless the site is revoked, or its kit was handed over and deleted."""
    folder = consortium.site_folder(issued.who)
    archive = folder.with_name(f"{issued.who}.zip")
    if issued.revoked or issued.node is None:
        return "revoked"
    if not folder.exists() and issued.who not in consortium.issued_now:
        return "handed over"
    node = parse_openssh_public(issued.node.encode(), f"issued.jsonl: node of {issued.who}")
    certified = dict(zip(KEYS_OF_SITE, (node, public_key(issued.parse())), strict=True))
    private = read_private_keys(folder, certified)
    files = render_site_kit(consortium.federation, issued, ca, private)
    consortium.changed += write_kit(folder, files, certified)
    consortium.changed += write_file(archive, KitFile(zip_kit(files), 0o600))
    return "complete" if private else "without keys"


def _write_server(
    consortium: Consortium, latest: dict[str, Issued], certificates: ServerCertificates, ca: bytes
) -> _State:
    folder = consortium.server_folder
    certified = {
        KEYS_OF_SERVER["proxy"]: public_key(certificates.proxy.parse()),
        KEYS_OF_SERVER["superlink"]: public_key(certificates.superlink.parse()),
    }
    private = read_private_keys(folder, certified)
    files = render_server_kit(consortium.federation, consortium.source, latest, certificates, ca, private)
    consortium.changed += write_kit(folder, files, certified)
    for path in sorted((folder / "nodes").glob("*.pub")):
        if f"nodes/{path.name}" not in files:
            consortium.changed += delete_file(path)
    return "complete" if private else "without keys"


def _find_notices(
    consortium: Consortium, latest: dict[str, Issued], certificates: ServerCertificates
) -> tuple[str, ...]:
    def say(what: str, certificate: x509.Certificate, act: str) -> list[str]:
        validity = check_validity(certificate, consortium.now)
        return [] if validity.state == "valid" else [f"{what} {validity.sentence}; {act}"]

    found = []
    for name, issued in latest.items():
        if not issued.revoked:
            found += say(f"the certificate of {name}", issued.parse(), f"ept-fed provision renew {name}")
    for issued in (certificates.proxy, certificates.superlink):
        found += say(f"the server's {issued.what}.crt", issued.parse(), "ept-fed provision renew --server")
    found += say("the authority", consortium.authority.certificate, "create a new federation before that")
    return tuple(found)
