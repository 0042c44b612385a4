"""The simulation commands of `ept-fed`: `simulate`, `benchmark`, `report`, `doctor rehearse` and `audit attack`."""

import typer

from client.cli import audit
from ept_fed.cli import doctor
from ept_fed.cli.commands import ONE_MACHINE
from simulations.cli import audit_attack, benchmark, rehearse, report, simulate

__all__ = ["add_commands"]


def add_commands(app: typer.Typer) -> None:
    """Add the top-level commands, and those in the groups `doctor` and `audit`."""
    app.command(epilog=simulate.EXAMPLES, rich_help_panel=ONE_MACHINE)(simulate.simulate)
    app.command(epilog=benchmark.EXAMPLES, rich_help_panel=ONE_MACHINE)(benchmark.benchmark)
    app.command(epilog=report.EXAMPLES, rich_help_panel=ONE_MACHINE)(report.report)
    doctor.app.command(epilog=rehearse.EXAMPLES)(rehearse.rehearse)
    audit.app.command("attack", epilog=audit_attack.ATTACK_EXAMPLES)(audit_attack.attack)
