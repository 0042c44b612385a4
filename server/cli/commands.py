"""The commands that the server's package adds to `ept-fed`: `provision` and `server`."""

import typer

from ept_fed.cli.commands import FEDERATION
from server.cli import provision, server

__all__ = ["add_commands"]


def add_commands(app: typer.Typer) -> None:
    """Add `provision` and `server` to the app."""
    app.add_typer(provision.app, rich_help_panel=FEDERATION)
    app.add_typer(server.app, rich_help_panel=FEDERATION)
