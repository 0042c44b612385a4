"""Kits for a federation: one readable YAML gives an authority, the server's kit and one kit per site.

Every operation ends by writing all kits, and this writes only files that differ. So a second run of `provision` changes
nothing, and an operation on one site changes only that site's kit and the server's. The authority's issued.jsonl lists
all certificates. Private keys are only in the kits. A kit that was handed over and deleted here is not made again.

There is no lock against two operations at the same time on one folder.
"""

from dataclasses import replace
from datetime import datetime
from pathlib import Path

from ept_fed.config.consortium import FederationSite, load_federation
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.pki.certificates import public_key
from ept_fed.pki.keys import parse_openssh_public
from ept_fed.pki.kit_layout import KEYS_OF_SERVER, KEYS_OF_SITE
from ept_fed.pki.signing_request import MAX_REQUEST_BYTES, parse_key_request
from server.provisioning.consortium import Consortium, Provisioned, open_consortium, reopen_consortium
from server.provisioning.kit_folder import make_key

__all__ = ["approve", "provision", "renew_server", "renew_site", "revoke"]


def provision(file: Path, out: Path, *, now: datetime) -> Provisioned:
    """Make the certificates and kits that a federation.yaml requires and that do not exist yet.

    Args:
        file: the federation.yaml.
        out: folder of all kits.
        now: a time with time zone.

    Raises:
        InputRefusedError: with every problem of the file, or if the folder holds another federation's kits.
    """
    federation = load_federation(file)
    consortium = open_consortium(out, file.read_bytes(), federation, now)
    gone = [
        Problem("sites", line.who, "has a certificate but is not listed any more; put it back, or revoke it first")
        for line in {line.who: line for line in consortium.authority.issued if line.what == "site"}.values()
        if federation.site(line.who) is None and not line.revoked
    ]
    if gone:
        raise InputRefusedError(gone)
    for site in federation.sites:
        if site.keys == "consortium" and consortium.authority.latest(site.name, "site") is None:
            _certify_new_keys(consortium, site.name, replace=False)
    return consortium.bring_up_to_date()


def renew_site(site: str, kits: Path, *, new_keys: bool = False, now: datetime) -> Provisioned:
    """Issue a new certificate for a site: for the same keys, or for new keys if the old ones are lost.

    Raises:
        InputRefusedError: for an unknown site, a revoked one without `new_keys`, or one that makes its own keys.
    """
    consortium = reopen_consortium(kits, now)
    entry = _known_site(consortium, site)
    current = consortium.authority.current(site, "site")
    if new_keys and entry.keys == "site":
        fix = "makes its own keys: revoke it, and let it send a new request"
        raise InputRefusedError([Problem("--new-keys", site, fix)])
    if new_keys:
        consortium.authority.revoke(site, "site", now)
        _certify_new_keys(consortium, site, replace=True)
    elif current is None or current.node is None:
        fix = "has no certificate to renew; " + (
            "approve its request" if entry.keys == "site" else "--new-keys readmits a revoked site"
        )
        raise InputRefusedError([Problem("site", site, fix)])
    else:
        node = parse_openssh_public(current.node.encode(), f"issued.jsonl: node of {site}")
        consortium.certify_site(site, (node, public_key(current.parse())))
    return consortium.bring_up_to_date()


def renew_server(kits: Path, *, new_keys: bool = False, now: datetime) -> Provisioned:
    """Issue new certificates for proxy and SuperLink; arguments and refusals are as in `renew_site`."""
    consortium = reopen_consortium(kits, now)
    for what, name in KEYS_OF_SERVER.items():
        current = consortium.authority.current("server", what)
        if new_keys or current is None:
            consortium.authority.revoke("server", what, now)
            key = make_key(consortium.server_folder, name, replace=True).public_key()
        else:
            key = public_key(current.parse())
        consortium.certify_server(what, key)
    return consortium.bring_up_to_date()


def revoke(site: str, kits: Path, *, now: datetime) -> Provisioned:
    """Revoke a site's certificates: they are marked, and the server's kit lists the site as revoked.

    The server refuses the site only after it has received that kit.

    Raises:
        InputRefusedError: for a site without a certificate that can be revoked.
    """
    consortium = reopen_consortium(kits, now)
    if not consortium.authority.revoke(site, "site", now):
        known = ", ".join(sorted({line.who for line in consortium.authority.issued if line.what == "site"}))
        raise InputRefusedError(
            [Problem("site", site, f"has no certificate to revoke; sites with certificates: {known or 'none'}")]
        )
    return consortium.bring_up_to_date()


def approve(request: Path, kits: Path, *, fingerprint: str | None = None, now: datetime) -> Provisioned:
    """Issue a certificate for keys that a site made itself; its kit contains no private key.

    Args:
        request: the file that `ept-fed provision request` made at the site.
        kits: folder of all kits.
        fingerprint: the digits that the site read out over the telephone, at least the first 16.
        now: a time with time zone.

    Raises:
        InputRefusedError: for an altered request, another fingerprint, an unknown site, a site that has a certificate,
            or keys that were certified before.
    """
    consortium = reopen_consortium(kits, now)
    try:
        with request.open("rb") as file:
            asked = parse_key_request(file.read(MAX_REQUEST_BYTES))
    except OSError as error:
        raise InputRefusedError([Problem("request", str(request), f"cannot be read ({error.strerror})")]) from error
    if fingerprint is not None and (len(fingerprint) < 16 or not asked.fingerprint.startswith(fingerprint.lower())):
        fix = f"is not that of the request, {asked.fingerprint}; ask the site which request is its own"
        raise InputRefusedError([Problem("--fingerprint", fingerprint, fix)])
    if _known_site(consortium, asked.site).keys != "site":
        fix = "gets its keys from the consortium; write keys: site for it in federation.yaml and provision again"
        raise InputRefusedError([Problem("request: site", asked.site, fix)])
    known = consortium.authority.knows(asked.site_key, asked.node_key)
    if known is not None:
        when = f"revoked on {known.revoked}" if known.revoked else f"approved already, for {known.who}"
        fix = f"its keys were {when} (serial {known.serial}); a new request needs new keys"
        raise InputRefusedError([Problem("request: keys", asked.site, fix)])
    current = consortium.authority.current(asked.site, "site")
    if current is not None:
        fix = f"has a certificate for other keys (serial {current.serial}); revoke it before new keys are approved"
        raise InputRefusedError([Problem("request: site", asked.site, fix)])
    consortium.certify_site(asked.site, (asked.node_key, asked.site_key))
    done = consortium.bring_up_to_date()
    if fingerprint is not None:
        return done
    notice = f"{asked.site} has to read out {asked.fingerprint}; if it reads out anything else, revoke {asked.site}"
    return replace(done, notices=(notice, *done.notices))


def _known_site(consortium: Consortium, name: str) -> FederationSite:
    site = consortium.federation.site(name)
    if site is None:
        known = ", ".join(site.name for site in consortium.federation.sites)
        fix = f"is not a site of {consortium.federation.name} ({known}); add it to federation.yaml and provision again"
        raise InputRefusedError([Problem("site", name, fix)])
    return site


def _certify_new_keys(consortium: Consortium, site: str, *, replace: bool) -> None:
    folder = consortium.site_folder(site)
    node, key = (make_key(folder, name, replace=replace).public_key() for name in KEYS_OF_SITE)
    known = consortium.authority.knows(node, key)
    if known is not None:
        fix = f"holds keys that were issued to {known.who} before; delete the folder, and new ones are made"
        raise InputRefusedError([Problem("kit", str(folder), fix)])
    consortium.changed += [folder / name for name in KEYS_OF_SITE]
    consortium.certify_site(site, (node, key))
