"""`ept-fed`: the application, its commands and its exit codes.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 faults found (doctor data).
"""

import sys
from typing import Annotated

import typer

import ept_fed
from ept_fed.cli import doctor, export, predict
from ept_fed.cli.commands import CHECKS, ONE_MACHINE, OrderedGroup, add_installed_commands

__all__ = ["app", "main"]

app = typer.Typer(
    name="ept-fed",
    cls=OrderedGroup,
    help="Tune the prompts of one frozen vision transformer across hospitals; no image leaves a site.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
)
app.command(epilog=export.EXAMPLES, rich_help_panel=ONE_MACHINE)(export.export)
app.command(epilog=predict.EXAMPLES, rich_help_panel=ONE_MACHINE)(predict.predict)
app.add_typer(doctor.app, rich_help_panel=CHECKS)
add_installed_commands(app)


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
    """Define the options that come before a command."""


def main() -> None:
    """Run the command line."""
    sys.exit(app())
