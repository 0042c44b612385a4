"""Registration of the `ept-fed` commands of other packages, which the library is not allowed to import.

Each package registers one function in the entry-point group `ept_fed.commands`. The function receives the application
and adds the package's commands to it.
"""

from importlib.metadata import entry_points

import click
import typer
from typer.core import TyperGroup

__all__ = ["CHECKS", "FEDERATION", "ONE_MACHINE", "OrderedGroup", "add_installed_commands"]

# Headings of `ept-fed --help`.
ONE_MACHINE = "On one machine"
FEDERATION = "Across hospitals"
CHECKS = "Before you start"

# In the order in which a new user needs them. A command that is not listed comes last.
_ORDER = ("simulate", "benchmark", "report", "export", "predict", "doctor", "provision", "server", "site", "audit")


class OrderedGroup(TyperGroup):
    """A command group with a fixed order of commands, independent of the order of registration."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the command names in the order of the help page."""
        places = {name: place for place, name in enumerate(_ORDER)}
        return sorted(super().list_commands(ctx), key=lambda name: (places.get(name, len(places)), name))


def add_installed_commands(app: typer.Typer) -> None:
    """Add the commands of all installed packages, sorted by package name."""
    for entry in sorted(entry_points(group="ept_fed.commands"), key=lambda entry: entry.name):
        entry.load()(app)
