"""Creation of a site's private keys at the site, and of the request to the consortium."""

from dataclasses import dataclass
from pathlib import Path

from ept_fed.config.consortium import FederationSite
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.pki.keys import (
    new_key,
    parse_openssh_private,
    parse_pkcs8,
    same_key,
    serialize_openssh_private,
    serialize_openssh_public,
    serialize_pkcs8,
)
from ept_fed.pki.signing_request import make_key_request, parse_key_request
from ept_fed.storage.files import write_bytes

__all__ = ["MadeRequest", "request_certificate"]


@dataclass(frozen=True)
class MadeRequest:
    """Path of the request, the fingerprint to read out over the telephone, and whether the request is new."""

    file: Path
    fingerprint: str
    new: bool


def request_certificate(folder: Path, site: str) -> MadeRequest:
    """Make keys/node, keys/node.pub and keys/site.key in a folder, and request.json for the consortium.

    Existing keys are never replaced. An existing request that matches them is not changed.

    Raises:
        InputRefusedError: for a name that no site can have, or files in the folder that do not match.
    """
    try:
        FederationSite(name=site)
    except ValueError as error:
        fix = "write 1 to 40 of a–z, 0–9, - and _, as the consortium wrote it in federation.yaml"
        raise InputRefusedError([Problem("--site", site, fix)]) from error
    keys, file = folder / "keys", folder / "request.json"
    if not (keys / "site.key").exists():
        write_bytes(keys / "site.key", serialize_pkcs8(new_key()), mode=0o600)
    if not (keys / "node").exists():
        write_bytes(keys / "node", serialize_openssh_private(new_key()), mode=0o600)
    keys.chmod(0o700)
    site_key = parse_pkcs8((keys / "site.key").read_bytes(), str(keys / "site.key"))
    node_key = parse_openssh_private((keys / "node").read_bytes(), str(keys / "node"))
    new = not file.exists()
    if new:
        write_bytes(keys / "node.pub", f"{serialize_openssh_public(node_key.public_key())} {site}\n".encode())
        write_bytes(file, make_key_request(site, site_key, node_key))
    request = parse_key_request(file.read_bytes())
    if (
        request.site != site
        or not same_key(request.site_key, site_key.public_key())
        or not same_key(request.node_key, node_key.public_key())
    ):
        fix = f"is a request of '{request.site}' or for other keys than those beside it; delete it, or name another DIR"
        raise InputRefusedError([Problem("DIR", str(file), fix)])
    return MadeRequest(file, request.fingerprint, new)
