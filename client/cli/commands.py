"""The commands that the hospital's package adds to `ept-fed`: `site` and `audit`."""

import typer

from client.cli import audit, site
from ept_fed.cli.commands import FEDERATION

__all__ = ["add_commands"]


def add_commands(app: typer.Typer) -> None:
    """Add `site` and `audit` to the app."""
    app.add_typer(site.app, rich_help_panel=FEDERATION)
    app.add_typer(audit.app, rich_help_panel=FEDERATION)
