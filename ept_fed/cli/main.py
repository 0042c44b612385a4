"""`ept-fed`: verbs, exit codes, and how refusals look.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 faults found (doctor data).
"""

import sys
from typing import Annotated

import typer

import ept_fed
from ept_fed.cli import audit, benchmark, doctor, export, predict, provision, rehearse, report, server, simulate, site

__all__ = ["app", "main"]

app = typer.Typer(
    name="ept-fed",
    help="Tune the prompts of one frozen vision transformer across hospitals; no image leaves a site.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
)
app.command(epilog=simulate.EXAMPLES)(simulate.simulate)
app.command(epilog=benchmark.EXAMPLES)(benchmark.benchmark)
app.command(epilog=export.EXAMPLES)(export.export)
app.command(epilog=predict.EXAMPLES)(predict.predict)
app.command(epilog=report.EXAMPLES)(report.report)
app.add_typer(provision.app)
doctor.app.command(epilog=rehearse.EXAMPLES)(rehearse.rehearse)
app.add_typer(doctor.app)
app.add_typer(server.app)
app.add_typer(site.app)
app.add_typer(audit.app)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ept-fed {ept_fed.__version__}")
        raise typer.Exit


@app.callback(epilog="Examples:\n\n  ept-fed simulate\n\n  ept-fed simulate --help")
def _options(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Hold the options that come before a verb."""


def main() -> None:
    """Run the command line."""
    sys.exit(app())
