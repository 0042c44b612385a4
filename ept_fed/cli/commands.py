"""The commands of `ept-fed` that other packages bring; the library may not import them, so they register.

Each package names one function in the entry-point group `ept_fed.commands`; it takes the application and adds to it.
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

# As a reader needs them: first on one machine, then across hospitals. A command that is not listed comes last.
_ORDER = ("simulate", "benchmark", "report", "export", "predict", "doctor", "provision", "server", "site", "audit")


class OrderedGroup(TyperGroup):
    """A group that lists its commands in a fixed order, whichever package registered first."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the help page."""
        places = {name: place for place, name in enumerate(_ORDER)}
        return sorted(super().list_commands(ctx), key=lambda name: (places.get(name, len(places)), name))


def add_installed_commands(app: typer.Typer) -> None:
    """Add the commands of every installed package, in the order of the packages' names."""
    for entry in sorted(entry_points(group="ept_fed.commands"), key=lambda entry: entry.name):
        entry.load()(app)
