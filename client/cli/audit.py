"""The command `ept-fed audit`: verify a site's ledger, list its entries, or begin a new ledger."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ept_fed.cli.refusals import DONE, FAILED, exit_on_refusal

__all__ = ["app"]

_VERIFY_EXAMPLES = (
    "Examples:\n\n  ept-fed audit verify state/ledger.jsonl\n\n"
    "  ept-fed audit verify state/ledger.jsonl --certificate tls/site.crt --ca tls/ca.crt"
)
_SHOW_EXAMPLES = (
    "Examples:\n\n  ept-fed audit show state/ledger.jsonl --decision refused\n\n"
    "  ept-fed audit show state/ledger.jsonl --direction out --last 20 --json"
)
_BEGIN_EXAMPLES = (
    "Examples:\n\n  ept-fed audit begin kits/sites/north --reason 'the disk failed on 3 May, no backup'\n\n"
    "  ept-fed audit begin . --reason 'moved to another machine' --json"
)

app = typer.Typer(name="audit", help="Show what passed a site's gate, and what its updates leak.", no_args_is_help=True)
_Ledger = Annotated[
    Path, typer.Argument(help="The site's ledger.jsonl; ledger.tip is in the same folder.", metavar="LEDGER")
]
_AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


class _Direction(StrEnum):
    into = "in"
    out = "out"
    site = "site"


class _Decision(StrEnum):
    passed = "passed"
    clipped = "clipped"
    refused = "refused"
    noted = "noted"


@app.callback()
def _audit() -> None:
    """Show what passed a site's gate, whether its ledger is intact, and what its updates leak."""


@app.command("verify", epilog=_VERIFY_EXAMPLES)
def verify(
    ledger: _Ledger,
    certificate: Annotated[
        Path | None, typer.Option(help="The site's certificate: its key must have signed the ledger.", metavar="FILE")
    ] = None,
    authority: Annotated[
        Path | None,
        typer.Option("--ca", help="The consortium's certificate, which must have issued the site's.", metavar="FILE"),
    ] = None,
    seen: Annotated[
        str | None,
        typer.Option(
            help="An end that an earlier verify printed and that must still be in the ledger.", metavar="SEQUENCE:HASH"
        ),
    ] = None,
    every_signature: Annotated[
        bool, typer.Option("--every-signature", help="Check the signature of each line even if no other check fails.")
    ] = False,
    as_json: _AsJson = False,
) -> None:
    """Check chain, signatures, tip and totals of a ledger, and describe the messages that left the site.

    Exit code 0: intact; 1: altered, with line and kind of every finding, or no complete entry; 2: a file cannot be
    read.
    """
    from client.audit.report import verify_ledger

    with exit_on_refusal(as_json=as_json):
        report = verify_ledger(
            ledger, certificate=certificate, authority=authority, seen=seen, every_signature=every_signature
        )
    sound = report["status"] == "sound"
    if as_json:
        import json

        typer.echo(json.dumps(report))
    else:
        for sentence in (*(report["sentences"] if sound else ()), *report["verdict"]):
            typer.echo(sentence)
        if sound:
            typer.echo(
                f"Note this end outside this machine; it reveals a later cut of the ledger: --seen {report['end']}"
            )
    raise typer.Exit(DONE if sound else FAILED)


@app.command("show", epilog=_SHOW_EXAMPLES)
def show(
    ledger: _Ledger,
    run: Annotated[str | None, typer.Option(help="Only messages of this run.")] = None,
    direction: Annotated[
        _Direction | None, typer.Option(help="Only incoming messages, outgoing messages, or the site's own entries.")
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="introduce, introduction, train, evaluate; opened, recovered, charged.")
    ] = None,
    decision: Annotated[_Decision | None, typer.Option(help="Only entries with this decision.")] = None,
    last: Annotated[int | None, typer.Option(min=1, help="Only this number of newest entries.")] = None,
    as_json: _AsJson = False,
) -> None:
    """List a ledger's entries without checks (`ept-fed audit verify` checks them).

    Exit code 0: listed; 2: the file cannot be read.
    """
    from client.audit.report import show_ledger

    with exit_on_refusal(as_json=as_json):
        entries = show_ledger(ledger, run=run, direction=direction, kind=kind, decision=decision, last=last)
    if as_json:
        import json

        typer.echo(json.dumps({"schema": 1, "entries": entries}))
        raise typer.Exit(DONE)
    for entry in entries:
        place = (
            "" if entry["run"] is None else f"{entry['run']} " + (f"round {entry['round']}" if entry["round"] else "")
        )
        sent = ", ".join(f"{name} {'×'.join(map(str, shape))}" for name, shape in entry["tensors"])
        parts = (entry["direction"], entry["kind"], place.strip(), f"{entry['bytes']:,} bytes", sent, entry["decision"])
        typer.echo(f"{entry['sequence']:>6}  {entry['time'][:19]}  " + "  ".join(part for part in parts if part))
        if entry["reason"] and entry["decision"] != "noted":
            typer.echo(f"{'':>8}{entry['reason']}")
    raise typer.Exit(DONE)


@app.command("begin", epilog=_BEGIN_EXAMPLES)
def begin(
    kit: Annotated[Path, typer.Argument(help="Folder of the site's kit.", metavar="KIT")],
    reason: Annotated[str, typer.Option(help="Why the earlier ledger is lost; the first entry records it.")],
    as_json: _AsJson = False,
) -> None:
    """Begin a new ledger after the earlier one is lost, but the site's state has evidence of it.

    The worker refuses to start in this case. The gate loses the content of the old ledger: the first backbone and
    splits are pinned again, and runs must be proposed again. The privacy budget continues. Exit code 0: begun; 2: there
    is a ledger, or something else has to be corrected first.
    """
    from client.audit.begin_ledger import begin_ledger

    with exit_on_refusal(as_json=as_json):
        begun = begin_ledger(kit, reason)
    if as_json:
        import json

        typer.echo(json.dumps(begun))
    else:
        typer.echo(begun["sentence"])
    raise typer.Exit(DONE)
