"""Reading of a site's credentials for secure aggregation from its kit."""

from pathlib import Path

from client.gate.open_gate import read_site_key
from client.site.secure_aggregation import Credentials
from ept_fed.pki.certificates import parse_certificate

__all__ = ["read_credentials"]

_CERTIFICATE, _AUTHORITY = Path("tls/site.crt"), Path("tls/ca.crt")


def read_credentials(kit: Path) -> Credentials | None:
    """Return a kit's key, certificate and authority; None if the kit has no certificates.

    Raises:
        InputRefusedError: for a file that cannot be read.
    """
    certificate, authority = kit / _CERTIFICATE, kit / _AUTHORITY
    if not certificate.exists() or not authority.exists():
        return None
    return Credentials(
        key=read_site_key(kit),
        certificate=parse_certificate(certificate.read_bytes(), str(_CERTIFICATE)),
        authority=parse_certificate(authority.read_bytes(), str(_AUTHORITY)),
    )
