"""The command `ept-fed site`: the worker and Flower's SuperNode of a hospital, their checks and the site's report."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ept_fed.cli.refusals import DONE, FAILED, exit_on_refusal

if TYPE_CHECKING:
    from client.deployment.preflight import Finding
    from client.worker.unix_sockets import WorkerStatus

__all__ = ["app"]

app = typer.Typer(name="site", help="Take part in a federation as a hospital.", no_args_is_help=True)

_Kit = Annotated[Path, typer.Argument(help="Folder of the site's kit.", metavar="KIT")]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


@app.callback()
def _site() -> None:
    """Take part in a federation as a hospital."""


@app.command(
    epilog="Examples:\n\n  ept-fed site start kits/sites/north\n\n  ept-fed site start kits/sites/north --worker-only"
)
def start(
    kit: _Kit = Path(),
    worker_only: Annotated[
        bool, typer.Option("--worker-only", help="Only the worker; another user runs SuperNode.")
    ] = False,
    node_only: Annotated[bool, typer.Option("--node-only", help="Only SuperNode; the worker runs separately.")] = False,
) -> None:
    """Run the site in the foreground: the worker, and SuperNode, which connects it to the server.

    Worker and SuperNode are restarted when they fail. Both end with this command (Ctrl-C, SIGTERM, or ept-fed site
    stop). Logs are in KIT/logs. Exit code 0: stopped; 2: something has to be corrected first.
    """
    from client.deployment.service import Part, start_site

    with exit_on_refusal(as_json=False):
        from ept_fed.errors import InputRefusedError, Problem

        if worker_only and node_only:
            raise InputRefusedError([Problem("--node-only", "", "and --worker-only exclude each other; use only one")])
        parts: tuple[Part, ...] = ("worker",) if worker_only else ("node",) if node_only else ("worker", "node")
        code = start_site(kit, parts, typer.echo)
    raise typer.Exit(code)


@app.command(
    epilog="Examples:\n\n  ept-fed site check kits/sites/north\n\n  ept-fed site check kits/sites/north --json"
)
def check(kit: _Kit = Path(), as_json: _Json = False) -> None:
    """Check all that the site needs to take part; each failed line contains a fix.

    The checks are: kit, policy, certificates, server and clock, this node's registration, worker, disk and GPU memory,
    weights, and every image. Exit code 0: nothing failed; 1: something failed; 2: site.yaml has to be corrected first.
    """
    from client.deployment.preflight import check_kit
    from ept_fed.storage.files import dump_json

    with exit_on_refusal(as_json=as_json):
        findings = check_kit(kit, (lambda _: None) if as_json else _print_finding)
    failed = any(finding.state == "failed" for finding in findings)
    if as_json:
        status = "failed" if failed else "done"
        typer.echo(dump_json({"schema": 1, "status": status, "checks": [finding.to_json() for finding in findings]}))
    raise typer.Exit(FAILED if failed else DONE)


@app.command(
    epilog="Examples:\n\n  ept-fed site status kits/sites/north\n\n  ept-fed site status kits/sites/north --json"
)
def status(kit: _Kit = Path(), as_json: _Json = False) -> None:
    """Show the running processes and the worker's activity, without delay even while it trains.

    The worker answers only to its own user. Exit code 0: it answers; 1: it does not; 2: site.yaml has to be corrected
    first.
    """
    from dataclasses import asdict

    from client.deployment.service import describe_site
    from ept_fed.storage.files import dump_json

    with exit_on_refusal(as_json=as_json):
        running, worker = describe_site(kit)
    if as_json:
        document = {"schema": 1, "status": "done" if worker else "failed", "processes": running}
        typer.echo(dump_json({**document, "worker": asdict(worker) if worker else None}))
    else:
        for part in ("worker", "node"):
            kept = "not kept running from this kit"
            if part in running:
                pid = running[part]
                kept = f"kept running by process {pid}" if pid else "belongs to another user; only that user can see it"
            typer.echo(f"{part}: {kept}")
        away = "the worker does not answer; start it with: ept-fed site start, or run this command as the worker's user"
        typer.echo(_describe(worker) if worker else away)
    raise typer.Exit(DONE if worker else FAILED)


@app.command(epilog="Examples:\n\n  ept-fed site stop kits/sites/north\n\n  ept-fed site stop")
def stop(kit: _Kit = Path()) -> None:
    """End the programs that `ept-fed site start` runs; an interrupted training round starts again at the next start.

    Exit code 0: stopped, or nothing was running; 1: something is still running, or belongs to another user.
    """
    from client.deployment.service import stop_site

    try:
        stopped = stop_site(kit)
    except (TimeoutError, PermissionError) as error:
        typer.echo(f"not stopped: {error}", err=True)
        raise typer.Exit(FAILED) from None
    typer.echo(f"stopped: {', '.join(stopped)}" if stopped else "nothing was running")
    raise typer.Exit(DONE)


@app.command(
    epilog="Examples:\n\n  ept-fed site report kits/sites/north\n\n  ept-fed site report --run skin-2026 --no-gallery"
)
def report(
    kit: _Kit = Path(),
    run: Annotated[
        str | None, typer.Option(help="Name of the run, or its first characters. Default: the run agreed to last.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the report. Default: KIT/reports/RUN.")] = None,
    gallery: Annotated[
        bool, typer.Option("--gallery/--no-gallery", help="Show the most confident errors as pictures.")
    ] = True,
    as_json: _Json = False,
) -> None:
    """Compare the federated model with the site's local model on the site's own test patients.

    The command trains the local model for the run's rounds; a later report does not repeat this. It writes the site's
    page, report.json, predictions.csv and model.safetensors. No data leaves the site, and the worker can continue in
    the meantime. The folder is a run folder: ept-fed report makes PDF or CSV from it, and ept-fed export makes a bundle
    for ept-fed predict. Exit code 0: done; 2: something has to be corrected first.
    """
    from client.report.make_report import report_site
    from ept_fed.storage.files import dump_json

    with exit_on_refusal(as_json=as_json):
        if as_json:
            from ept_fed.progress import Silent

            made = report_site(kit, Silent(), run=run, out=out, gallery=gallery)
        else:
            from ept_fed.cli.display import LiveDisplay

            with LiveDisplay(None) as display:
                made = report_site(kit, display, run=run, out=out, gallery=gallery)
    if as_json:
        typer.echo(dump_json(made))
    else:
        typer.echo(f"{made['site']}, run {made['run']}, prompts of round {made['round']} of {made['rounds']}")
        for sentence in (made["sentence"], *made["details"]):
            typer.echo(sentence)
        typer.echo(f"Open {made['page']}; numbers, predictions and model are in the same folder.")
    raise typer.Exit(DONE)


def _print_finding(finding: "Finding") -> None:
    shown = {"ok": "ok     ", "notice": "notice ", "failed": "FAILED ", "unknown": "unknown"}[finding.state]
    typer.echo(f"{shown} {finding.name}: {finding.found}")
    if finding.fix:
        typer.echo(f"        {finding.fix}")


def _describe(worker: "WorkerStatus") -> str:
    from datetime import datetime

    since = datetime.fromtimestamp(worker.started).isoformat(sep=" ", timespec="seconds")
    held = f"in run {worker.run}" + (f", round {worker.round}" if worker.round else "") if worker.run else "free"
    memory = "nothing loaded yet"
    if worker.backbone_digest:
        memory = f"backbone {worker.backbone_digest[:16]}…, {worker.training_images} training images in memory"
    return f"{worker.site}: {worker.activity}, {held}; {memory}; process {worker.pid} since {since}"
