"""The command `ept-fed server`: SuperLink and proxy of the consortium, runs, and their status."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ept_fed.cli.refusals import DONE, FAILED, exit_on_refusal

__all__ = ["app"]

app = typer.Typer(name="server", help="Run the consortium's server.", no_args_is_help=True)

_Kit = Annotated[Path, typer.Argument(help="Folder of the server's kit.", metavar="KIT")]
_KitOption = Annotated[Path, typer.Option("--kit", help="Folder of the server's kit.", metavar="KIT")]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


@app.callback()
def _server() -> None:
    """Run the consortium's server."""


@app.command(
    epilog="Examples:\n\n  ept-fed server start kits/server\n\n  ept-fed server start kits/server --proxy none"
)
def start(
    kit: _Kit = Path(),
    proxy: Annotated[
        Literal["nginx", "none"],
        typer.Option(help="none: use another proxy in front of SuperLink; see KIT/state/proxy/Caddyfile."),
    ] = "nginx",
) -> None:
    """Run the server in the foreground: SuperLink on loopback with its sites registered, and the proxy in front of it.

    SuperLink and proxy are restarted when they fail. Both end with this command (Ctrl-C, SIGTERM, or ept-fed server
    stop). Logs are in KIT/state/logs. Exit code 0: stopped; 2: something has to be corrected first.
    """
    from server.deployment.service import start_server

    with exit_on_refusal(as_json=False):
        code = start_server(kit, proxy, typer.echo)
    raise typer.Exit(code)


@app.command(
    epilog="Examples:\n\n  ept-fed server run configs/ham10000.yaml --kit kits/server\n\n"
    "  ept-fed server run --resume --kit kits/server"
)
def run(
    config: Annotated[Path | None, typer.Argument(help="Experiment in YAML. Default with --resume: the run's.")] = None,
    kit: _KitOption = Path(),
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one setting; repeatable.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run and folder. Default: the experiment's.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted run: --name, or the newest one.")
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Return after the submission.")] = False,
    as_json: _Json = False,
) -> None:
    """Propose an experiment to the sites, run it, and follow it.

    Each site sets the paths of its own images and weights; such paths in the experiment are ignored here. Ctrl-C stops
    following; the run continues. Exit code 0: done, or submitted; 1: failed or stopped; 2: something has to be
    corrected first, or another run is in progress.
    """
    from ept_fed.storage.files import dump_json
    from server.cli.run_display import RunDisplay
    from server.deployment.status import describe_server
    from server.deployment.submit import run_experiment

    with _explained(as_json=as_json), RunDisplay() as display:

        def watch(_kit: Any, _name: str) -> None:
            if not as_json:
                display.show(describe_server(kit))

        try:
            end = run_experiment(kit, config, overrides or [], name=name, resume=resume, wait=not detach, watch=watch)
        except KeyboardInterrupt:
            typer.echo("The run continues; ept-fed server stop --run ends it.", err=True)
            raise typer.Exit(FAILED) from None
    if as_json:
        document = {"schema": 1, "status": end.status, "name": end.name, "folder": str(end.folder), "ended": end.ended}
        typer.echo(dump_json(document))
    else:
        typer.echo(f"{end.name}: {end.status}: {end.ended}\nRun folder: {end.folder}")
    raise typer.Exit(DONE if end.status in ("done", "submitted") else FAILED)


@app.command(
    epilog="Examples:\n\n  ept-fed server status kits/server --watch\n\n  ept-fed server status kits/server --json"
)
def status(
    kit: _Kit = Path(),
    watch: Annotated[bool, typer.Option("--watch", help="Update it every second, until Ctrl-C.")] = False,
    as_json: _Json = False,
) -> None:
    """Show the status of the server, its sites and the newest run.

    Exit code 0: the server runs; 1: it does not run or does not answer; 2: KIT is not a server's kit.
    """
    from rich.console import Console

    from ept_fed.storage.files import dump_json
    from server.cli.run_display import RunDisplay, draw_server
    from server.deployment.status import describe_server

    with exit_on_refusal(as_json=as_json):
        document = describe_server(kit)
        if watch and not as_json:
            try:
                with RunDisplay() as display:
                    while True:
                        display.show(document)
                        time.sleep(1.0)
                        document = describe_server(kit)
            except KeyboardInterrupt:
                pass
        elif as_json:
            typer.echo(dump_json(document))
        else:
            Console().print(draw_server(document))
    raise typer.Exit(FAILED if document["problem"] else DONE)


@app.command(epilog="Examples:\n\n  ept-fed server sites kits/server\n\n  ept-fed server sites kits/server --json")
def sites(kit: _Kit = Path(), as_json: _Json = False) -> None:
    """List the sites with their status (registered, online, offline, revoked) and the expiry of their certificates.

    Exit code 0: the server runs; 1: it does not run or does not answer; 2: KIT is not a server's kit.
    """
    from ept_fed.storage.files import dump_json
    from server.deployment.status import describe_server

    with exit_on_refusal(as_json=as_json):
        document = describe_server(kit)
    if as_json:
        typer.echo(dump_json({"schema": 1, "problem": document["problem"], "sites": document["sites"]}))
    else:
        for name, site in document["sites"].items():
            where = f"  {site['location']}" if site["location"] else ""
            typer.echo(f"  {name:20}  {site['status']:14}  certificate until {site['not_after'][:10]}{where}")
        if document["problem"]:
            typer.echo(document["problem"], err=True)
    raise typer.Exit(FAILED if document["problem"] else DONE)


@app.command(epilog="Examples:\n\n  ept-fed server log kits/server\n\n  ept-fed server log kits/server --follow")
def log(
    kit: _Kit = Path(),
    name: Annotated[str | None, typer.Option(help="Name of the run. Default: the newest.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Wait for more lines, until Ctrl-C.")] = False,
) -> None:
    """Print the log of a current or finished run; the server need not run.

    The logs of SuperLink and the proxy are in KIT/state/logs. Exit code 0: printed; 1: there is no log.
    """
    from server.deployment.server_kit import open_server_kit

    with exit_on_refusal(as_json=False):
        opened = open_server_kit(kit)
    found = sorted(opened.runs.glob(f"{name or '*'}/run.log"), key=lambda path: path.stat().st_mtime)
    if not found:
        typer.echo(f"there is no log in {opened.runs}", err=True)
        raise typer.Exit(FAILED)
    with found[-1].open(encoding="utf-8", errors="replace") as lines:
        try:
            while True:
                typer.echo(lines.read(), nl=False)
                if not follow:
                    break
                time.sleep(0.5)
        except KeyboardInterrupt:
            pass
    raise typer.Exit(DONE)


@app.command(epilog="Examples:\n\n  ept-fed server stop kits/server\n\n  ept-fed server stop kits/server --run")
def stop(
    kit: _Kit = Path(),
    run_only: Annotated[bool, typer.Option("--run", help="End only the current run, not the server.")] = False,
) -> None:
    """End the server that `ept-fed server start` runs, or with --run only the current run.

    In both cases the run can be continued after its last round: ept-fed server run --resume. Exit code 0: stopped, or
    nothing was running; 1: it is still running, or belongs to another user.
    """
    from server.deployment.server_kit import open_server_kit
    from server.deployment.service import stop_server
    from server.deployment.submit import end_run

    with _explained(as_json=False):
        if run_only:
            ended = end_run(kit)
            typer.echo(f"stopped: run {ended}" if ended else "no run is in progress")
            raise typer.Exit(DONE)
        opened = open_server_kit(kit)
        try:
            pid = stop_server(opened)
        except (TimeoutError, PermissionError) as error:
            typer.echo(f"not stopped: {error}", err=True)
            raise typer.Exit(FAILED) from None
    typer.echo(f"stopped: process {pid}" if pid else "nothing was running")
    raise typer.Exit(DONE)


@contextmanager
def _explained(*, as_json: bool) -> Iterator[None]:
    """Report in one sentence that the server does not run or does not answer, with exit code 1."""
    from json import dumps

    from ept_fed.errors import UnavailableError

    try:
        with exit_on_refusal(as_json=as_json):
            yield
    except UnavailableError as error:
        if as_json:
            typer.echo(dumps({"schema": 1, "status": "failed", "ended": str(error)}))
        else:
            typer.echo(str(error), err=True)
        raise typer.Exit(FAILED) from None
