"""The command `ept-fed provision`: make the kits of a federation, and renew or revoke its certificates."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ept_fed.cli.default_command import group_with_default
from ept_fed.cli.refusals import exit_on_refusal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from server.provisioning.consortium import Provisioned

__all__ = ["app"]

_KITS = Annotated[Path, typer.Option("--kits", help="Folder of all kits, authority included.")]
_JSON = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
_KEYLESS = {"complete": "", "without keys": ", without private keys"}
_STATES = {
    "complete": "kit {kits}/sites/{name}.zip",
    "without keys": "kit {kits}/sites/{name}.zip, without private keys",
    "handed over": "kit handed over; no longer in this folder",
    "waits for its request": "no kit yet: waits for its request (ept-fed provision approve)",
    "revoked": "revoked: excluded after the server is restarted with its new kit",
}

app = typer.Typer(
    name="provision",
    cls=group_with_default("kits"),
    help="Make the kits of a federation: ept-fed provision federation.yaml --out kits",
    no_args_is_help=True,
    epilog="Examples:\n\n  ept-fed provision federation.yaml --out kits\n\n  ept-fed provision renew north",
)


@app.callback()
def _provision() -> None:
    """Make the kits of a federation: ept-fed provision federation.yaml --out kits."""


@app.command(
    "kits",
    epilog="Examples:\n\n  ept-fed provision configs/federation.yaml --out kits\n\n"
    "  ept-fed provision kits configs/federation.yaml --json",
)
def make_kits(
    file: Annotated[Path, typer.Argument(metavar="FEDERATION", help="federation.yaml: name, server, sites.")],
    out: Annotated[Path, typer.Option(help="Folder of all kits.")] = Path("kits"),
    as_json: _JSON = False,
) -> None:
    """Make an authority, the server's kit and one kit per site; the word `kits` may be left out.

    A second call changes nothing. A site that is added to the file gets a kit; the kits of other sites do not change.
    Private keys are made here, unless the file has `keys: site`. Exit code 0: done; 2: something has to be corrected
    first.
    """
    from server.provisioning.provision import provision

    with exit_on_refusal(as_json=as_json):
        done = provision(file, out, now=datetime.now(UTC))
    _tell(done, as_json=as_json)


@app.command(
    epilog="Examples:\n\n  ept-fed provision renew north\n\n  ept-fed provision renew --server --kits kits",
)
def renew(
    site: Annotated[str | None, typer.Argument(help="The site whose certificate is renewed.")] = None,
    server: Annotated[bool, typer.Option("--server", help="Renew the server's certificates instead.")] = False,
    new_keys: Annotated[
        bool, typer.Option("--new-keys", help="Make new private keys too; this admits a revoked site again.")
    ] = False,
    kits: _KITS = Path("kits"),
    as_json: _JSON = False,
) -> None:
    """Renew the certificate of one site, or those of the server; no other kit is changed.

    The keys stay the same, so the private keys are not needed here. Exit code 0: done; 2: something has to be corrected
    first.
    """
    from server.provisioning.provision import renew_server, renew_site

    with exit_on_refusal(as_json=as_json):
        from ept_fed.errors import InputRefusedError, Problem

        if (site is None) is not server:
            raise InputRefusedError([Problem("SITE", site, "name one site, or give --server, not both")])
        if site is None:
            done = renew_server(kits, new_keys=new_keys, now=datetime.now(UTC))
        else:
            done = renew_site(site, kits, new_keys=new_keys, now=datetime.now(UTC))
    _tell(done, as_json=as_json)


@app.command(
    epilog="Examples:\n\n  ept-fed provision revoke north\n\n  ept-fed provision revoke north --kits kits --json"
)
def revoke(
    site: Annotated[str, typer.Argument(help="The site to exclude.")],
    kits: _KITS = Path("kits"),
    as_json: _JSON = False,
) -> None:
    """Revoke a site's certificates; the server excludes the site after it is restarted with its new kit.

    Exit code 0: done; 2: something has to be corrected first.
    """
    from server.provisioning.provision import revoke as revoke_site

    with exit_on_refusal(as_json=as_json):
        done = revoke_site(site, kits, now=datetime.now(UTC))
    _tell(done, as_json=as_json)


@app.command(
    epilog="Examples:\n\n  ept-fed provision request kit --site south\n\n"
    "  ept-fed provision request kit --site south --json"
)
def request(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the future kit; created if it is missing.")],
    site: Annotated[str, typer.Option(help="This site's name, as the consortium wrote it.")],
    as_json: _JSON = False,
) -> None:
    """At the hospital: make the site's private keys and the request for its certificate.

    Only DIR/request.json goes to the consortium; the keys stay at the hospital. A second call changes nothing. Exit
    code 0: done; 2: something has to be corrected first.
    """
    with exit_on_refusal(as_json=as_json):
        from ept_fed.pki.site_keys import request_certificate

        made = request_certificate(folder, site)
    if as_json:
        _print_json({"status": "done", "request": str(made.file), "fingerprint": made.fingerprint, "new": made.new})
        return
    typer.echo(f"Send to the consortium: {made.file}{'' if made.new else ' (made before; nothing was changed)'}")
    typer.echo(f"Read out over the telephone: {made.fingerprint}")
    typer.echo(f"The private keys in {folder / 'keys'} stay here. When the kit arrives, unpack it into {folder}.")


@app.command(
    epilog="Examples:\n\n  ept-fed provision approve request.json\n\n"
    "  ept-fed provision approve request.json --fingerprint 0f3c5a… --kits kits"
)
def approve(
    file: Annotated[Path, typer.Argument(metavar="REQUEST", help="The request.json of a site.")],
    fingerprint: Annotated[
        str | None, typer.Option(help="The fingerprint that the site read out; at least its first 16 digits.")
    ] = None,
    kits: _KITS = Path("kits"),
    as_json: _JSON = False,
) -> None:
    """At the consortium: check a site's request and make its kit, which has no private key.

    Exit code 0: done; 2: the request was altered, the site is unknown, or the keys or the site were approved before.
    """
    from server.provisioning.provision import approve as approve_request

    with exit_on_refusal(as_json=as_json):
        done = approve_request(file, kits, fingerprint=fingerprint, now=datetime.now(UTC))
    _tell(done, as_json=as_json)


def _tell(done: "Provisioned", *, as_json: bool) -> None:
    if as_json:
        _print_json(
            {
                "status": "done",
                "schema": 1,
                "federation": done.federation,
                "kits": str(done.kits),
                "sites": [vars(site) for site in done.sites],
                "server_state": done.server_state,
                "server_not_after": done.server_not_after,
                "changed": [path.relative_to(done.kits).as_posix() for path in done.changed],
                "notices": list(done.notices),
            }
        )
        return
    width = max(len("server"), *(len(site.name) for site in done.sites))
    for site in done.sites:
        until = f"valid until {site.not_after[:10]}" if site.not_after and site.state != "revoked" else ""
        line = f"  {site.name:{width}}  {until:22}  {_STATES[site.state].format(kits=done.kits, name=site.name)}"
        typer.echo(line.rstrip())
    server = f"kit {done.kits}/server{_KEYLESS[done.server_state]}"
    typer.echo(f"  {'server':{width}}  valid until {done.server_not_after[:10]}  {server}")
    count = len(set(done.changed))
    typer.echo(f"{count} file{'' if count == 1 else 's'} written." if count else "Nothing was changed.")
    typer.echo(f"{done.kits}/authority stays with the leader of the consortium: not on the server, and with a backup.")
    for notice in done.notices:
        typer.echo(f"  * {notice}", err=True)


def _print_json(document: "Mapping[str, Any]") -> None:
    from ept_fed.storage.files import dump_json

    typer.echo(dump_json(document))
