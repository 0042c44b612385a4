"""Contents of a kit as bytes, for the server or for a site; equal federations and keys give equal kits."""

import io
import json
import stat
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import ept_fed
from ept_fed.config.consortium import Federation, is_address
from ept_fed.pki.kit_layout import CHECKSUMS, KEYS_OF_SITE, KitFile, KitIdentity, serialize_checksums
from server.provisioning.authority import Issued
from server.render_templates import render

__all__ = ["ServerCertificates", "render_server_kit", "render_site_kit", "zip_kit"]

_UNIX = 3
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can hold; constant, so equal kits give equal archives
_DOS_FOLDER = 0x10
_FIRST_UNPRIVILEGED_PORT = 1024


@dataclass(frozen=True)
class ServerCertificates:
    """Certificates that identify the server to the hospitals, and its SuperLink to its proxy."""

    proxy: Issued
    superlink: Issued


def render_site_kit(
    federation: Federation, issued: Issued, authority: bytes, private: Mapping[str, bytes]
) -> dict[str, KitFile]:
    """Return the files of a site's kit by name.

    Args:
        federation: names the site's federation and server.
        issued: the site's certificate and node key.
        authority: ca.crt.
        private: keys/node and keys/site.key, if the kit includes them.
    """
    if issued.node is None:
        raise ValueError(f"the certificate of {issued.who} names no node key")
    identity = KitIdentity(
        federation=federation.name, site=issued.who, server=federation.server, version=ept_fed.__version__
    )
    words = _words(federation) | {
        "site": issued.who,
        "not_after": issued.not_after[:10],
        "keys_here": bool(private),
    }
    files = {
        "site.yaml": KitFile(render("site/site.yaml.j2", words).encode()),
        "policy.yaml": KitFile(resources.files("ept_fed").joinpath("assets/policy.yaml").read_bytes()),
        "federation.json": KitFile(identity.serialize()),
        "tls/ca.crt": KitFile(authority),
        "tls/site.crt": KitFile(issued.certificate.encode()),
        "keys/node.pub": KitFile(f"{issued.node} {issued.who}\n".encode()),
        "README.md": KitFile(render("site/README.md.j2", words).encode()),
        "start-worker.sh": KitFile(render("site/start-worker.sh.j2", words).encode(), 0o755),
        "start-supernode.sh": KitFile(render("site/start-supernode.sh.j2", words).encode(), 0o755),
        "ept-fed-worker.service": KitFile(render("site/ept-fed-worker.service.j2", words).encode()),
        "ept-fed-supernode.service": KitFile(render("site/ept-fed-supernode.service.j2", words).encode()),
    }
    return _add_checksums(files, private)


def render_server_kit(
    federation: Federation,
    source: bytes,
    sites: Mapping[str, Issued],
    certificates: ServerCertificates,
    authority: bytes,
    private: Mapping[str, bytes],
) -> dict[str, KitFile]:
    """Return the files of the server's kit by name.

    Args:
        federation: the parsed federation.yaml.
        source: bytes of the federation.yaml, including comments.
        sites: the newest certificate of every site that ever had one.
        certificates: of proxy and SuperLink.
        authority: ca.crt.
        private: tls/proxy.key and tls/superlink.key, if the kit includes them.
    """
    words = _words(federation) | {
        "host": federation.server.host,
        "port": federation.server.port,
        "not_after": certificates.proxy.not_after[:10],
    }
    if federation.server.port < _FIRST_UNPRIVILEGED_PORT:
        words["capabilities"] = "CAP_NET_BIND_SERVICE"
    files = {
        "federation.yaml": KitFile(source),
        "sites.json": KitFile(_serialize_sites(federation, sites)),
        "tls/ca.crt": KitFile(authority),
        "tls/proxy.crt": KitFile(certificates.proxy.certificate.encode()),
        "tls/superlink.crt": KitFile(certificates.superlink.certificate.encode()),
        "README.md": KitFile(render("server/README.md.j2", words).encode()),
        "start.sh": KitFile(render("server/start.sh.j2", words).encode(), 0o755),
        "ept-fed-server.service": KitFile(render("server/ept-fed-server.service.j2", words).encode()),
    }
    admitted = {name: issued for name, issued in sites.items() if not issued.revoked}
    files |= {f"nodes/{name}.pub": KitFile(f"{issued.node} {name}\n".encode()) for name, issued in admitted.items()}
    return _add_checksums(files, private)


def zip_kit(files: Mapping[str, KitFile]) -> bytes:
    """Return a site's kit as a zip that `unzip` unpacks with the permissions; equal kits give equal bytes."""
    closed = {_folder(name) for name in KEYS_OF_SITE}
    folders = {_folder(name) for name in files if "/" in name}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted([*files, *folders]):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.create_system = _UNIX
            if name in folders:
                mode = stat.S_IFDIR | (0o700 if name in closed else 0o755)
                entry.external_attr = (mode << 16) | _DOS_FOLDER
                archive.writestr(entry, b"")
            else:
                entry.external_attr = (stat.S_IFREG | files[name].mode) << 16
                archive.writestr(entry, files[name].content)
    return buffer.getvalue()


def _folder(name: str) -> str:
    return f"{name.rsplit('/', 1)[0]}/"


def _add_checksums(files: Mapping[str, KitFile], private: Mapping[str, bytes]) -> dict[str, KitFile]:
    whole = {**files, CHECKSUMS: KitFile(serialize_checksums(files))}
    return whole | {name: KitFile(content, 0o600) for name, content in private.items()}


def _serialize_sites(federation: Federation, sites: Mapping[str, Issued]) -> bytes:
    document = {
        "schema": 1,
        "federation": federation.name,
        "sites": {
            name: {
                "node": issued.node,
                "certificate": issued.fingerprint,
                "serial": issued.serial,
                "not_after": issued.not_after,
                "location": _location(federation, name),
                "revoked": issued.revoked is not None,
            }
            for name, issued in sorted(sites.items())
        },
    }
    return (json.dumps(document, indent=2) + "\n").encode()


def _location(federation: Federation, name: str) -> str | None:
    site = federation.site(name)
    return None if site is None else site.location


def _words(federation: Federation) -> dict[str, Any]:
    host, port = federation.server.host, federation.server.port
    return {
        "federation": federation.name,
        "about": " ".join((federation.about or "").split()),
        "address": f"[{host}]:{port}" if is_address(host) and ":" in host else f"{host}:{port}",
        "version": ept_fed.__version__,
        "made_by": f"Made by ept-fed {ept_fed.__version__} provision; a new kit replaces this file.",
        "capabilities": "",
    }
