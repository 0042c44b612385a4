"""Temporary certificates for a simulation: an authority that exists as long as the process, and a key per site.

They authenticate nobody. A simulation with secure aggregation uses them as hospitals use their kits, so that its
measurements and its messages are the same as in a deployment.
"""

import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from client.site.secure_aggregation import Credentials
from ept_fed.pki.keys import new_key
from server.provisioning.authority import Authority

__all__ = ["certify_sites"]

_DAYS = 365


def certify_sites(names: Sequence[str]) -> tuple[x509.Certificate, dict[str, Credentials]]:
    """Return the authority's certificate and each site's credentials by name."""
    now = datetime.now(UTC)
    held = {}
    with tempfile.TemporaryDirectory() as folder:
        authority = Authority(Path(folder), "simulation", now, _DAYS)
        for name in names:
            key = new_key()
            issued = authority.issue_site(name, key.public_key(), "", now=now, days=_DAYS)
            held[name] = Credentials(key, issued.parse(), authority.certificate)
    return authority.certificate, held
