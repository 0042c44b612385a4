"""The server's kit, which `ept-fed provision` writes, and its folder state/, which only the running server writes.

state/                     0700, made when the server starts
  server.json              SuperLink's port and start time, of the current or the last start
  superlink.db             Flower's registrations, runs and messages
  flwr-home/               Flower's own files
  proxy/                   the proxy's configuration and temporary files
  logs/superlink/, logs/proxy/
  runs/<name>/             a run folder per run (`ept_fed.reports.run.run_folder`)
"""

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from pydantic import ConfigDict, Field, ValidationError

from ept_fed.config.base import Settings
from ept_fed.config.consortium import Federation, SafeName, load_federation
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.pki.certificates import check_validity, find_chain_problems, parse_certificate
from ept_fed.pki.keys import parse_openssh_public
from ept_fed.pki.kit_layout import SUPERLINK_HOSTS

__all__ = ["KIT_VARIABLE", "ServerKit", "SiteEntry", "open_server_kit"]

# This variable has the path of the kit in every process of the server, so these processes can be found by it.
KIT_VARIABLE = "EPT_FED_SERVER_KIT"
_TLS = ("tls/ca.crt", "tls/proxy.crt", "tls/proxy.key", "tls/superlink.crt", "tls/superlink.key")


class SiteEntry(Settings):
    """A site in sites.json."""

    node: str = Field(description="public key of its node, in OpenSSH's format")
    certificate: str
    serial: str
    not_after: str
    location: str | None
    revoked: bool


class _SitesFile(Settings):
    model_config = ConfigDict(populate_by_name=True)

    schema_version: Literal[1] = Field(alias="schema")
    federation: SafeName
    sites: dict[SafeName, SiteEntry]


@dataclass(frozen=True)
class ServerKit:
    """An opened kit.

    Attributes:
        folder: absolute path of the kit.
        federation: the settings from federation.yaml.
        sites: all sites that have or had a certificate, by name.
    """

    folder: Path
    federation: Federation
    sites: dict[str, SiteEntry]

    @property
    def state(self) -> Path:
        """Folder for all files that the running server writes."""
        return self.folder / "state"

    @property
    def runs(self) -> Path:
        """Folder of the run folders."""
        return self.state / "runs"

    def public_keys(self) -> dict[str, bytes]:
        """Return the public keys of the admitted sites' nodes, as PEM, by name.

        Raises:
            InputRefusedError: if a key is not a P-384 key.
        """
        return {
            name: parse_openssh_public(site.node.encode(), f"sites.json: {name}").public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
            for name, site in self.sites.items()
            if not site.revoked
        }

    def authority(self) -> x509.Certificate:
        """Return the certificate of the consortium's authority, which issued the sites' certificates.

        Raises:
            InputRefusedError: if it cannot be read.
        """
        return parse_certificate((self.folder / "tls" / "ca.crt").read_bytes(), "tls/ca.crt")

    def make_state(self) -> None:
        """Make the folders that the server's processes write to; only the server's user has access."""
        for folder in (self.state, self.runs, self.state / "flwr-home", self.state / "proxy", self.state / "logs"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.state.chmod(0o700)

    def find_tls_problems(self, now: datetime) -> list[Problem]:
        """Return problems with the server's certificates: files, validity period, authority and host names."""
        missing = [
            Problem(name, str(self.folder / name), "is missing; get the kit again")
            for name in _TLS
            if not (self.folder / name).is_file()
        ]
        if missing:
            return missing
        found = []
        try:
            authority = self._certificate("tls/ca.crt")
            for name, hosts in (("proxy", (self.federation.server.host,)), ("superlink", SUPERLINK_HOSTS)):
                certificate = self._certificate(f"tls/{name}.crt")
                found += find_chain_problems(certificate, authority, f"tls/{name}.crt", hosts=hosts)
                validity = check_validity(certificate, now)
                if validity.state in ("not yet", "ended"):
                    fix = f"{validity.sentence}; the consortium runs: ept-fed provision renew --server"
                    found.append(Problem(f"tls/{name}.crt", str(validity.not_after.date()), fix))
        except InputRefusedError as refusal:
            found += refusal.problems
        return found

    def _certificate(self, name: str) -> Any:
        return parse_certificate((self.folder / name).read_bytes(), name)


def open_server_kit(folder: Path) -> ServerKit:
    """Return the opened kit of a server.

    Raises:
        InputRefusedError: if the folder is not a server's kit, or its files do not belong together.
    """
    folder = folder.resolve()
    path = folder / "sites.json"
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
        listed = _SitesFile.model_validate(document)
    except OSError as error:
        fix = f"cannot be read ({error.strerror}); name the folder of the server's kit"
        raise InputRefusedError([Problem("sites.json", str(path), fix)]) from error
    except (ValidationError, ValueError, RecursionError) as error:
        fix = f"is not the file of a server's kit of this version ({type(error).__name__}); get the kit again"
        raise InputRefusedError([Problem("sites.json", str(path), fix)]) from error
    federation = load_federation(folder / "federation.yaml")
    if listed.federation != federation.name:
        fix = f"belongs to another federation than federation.yaml, {federation.name}; get the kit again"
        raise InputRefusedError([Problem("sites.json", listed.federation, fix)])
    return ServerKit(folder, federation, dict(listed.sites))
