"""`ept-fed doctor rehearse`: run a whole deployment on this machine, before hospitals are involved."""

from typing import Annotated

import typer

from ept_fed.cli.refusals import DONE, FAILED, exit_on_refusal

__all__ = ["EXAMPLES", "rehearse"]

EXAMPLES = "Examples:\n\n  ept-fed doctor rehearse\n\n  ept-fed doctor rehearse --sites 3 --keep"


def rehearse(
    sites: Annotated[int, typer.Option(min=2, max=3, help="Number of hospitals.")] = 2,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the folder with kits, logs and the run.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
) -> None:
    """Rehearse a deployment on this machine: kits, server behind its proxy, sites, and a federation of two rounds.

    Images are generated and the backbone is tiny; authority, TLS, node keys, nginx, SuperLink, SuperNodes, workers and
    their gates are the real ones. All processes are ended. Exit code 0: it works here; 1: it does not; 2: something
    is not installed.
    """
    from ept_fed.storage.files import dump_json
    from simulations.deployment.rehearse import rehearse as rehearse_deployment

    with exit_on_refusal(as_json=as_json):
        found = rehearse_deployment(sites, keep=keep, tell=(lambda _: None) if as_json else typer.echo)
    if as_json:
        typer.echo(dump_json(found))
    else:
        for line in found["rounds"]:
            typer.echo(f"round {line['round']}: {line['seconds']:.1f} s, averaged {', '.join(line['aggregated'])}")
        typer.echo(found["problem"] or "it works on this machine; all processes have ended")
        if found["folder"]:
            typer.echo(f"Folder: {found['folder']}")
    raise typer.Exit(FAILED if found["problem"] else DONE)
