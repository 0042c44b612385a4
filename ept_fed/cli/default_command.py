"""A command group with a default sub-command, for example `ept-fed provision federation.yaml`."""

from typing import Any

import click
from typer.core import TyperGroup

__all__ = ["group_with_default"]


def group_with_default(default: str) -> type[TyperGroup]:
    """Return a group that runs `default` if the first word is neither a sub-command nor an option."""

    class _Group(TyperGroup):
        def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
            if args and args[0] not in self.commands and not args[0].startswith("-"):
                args = [default, *args]
            return super().resolve_command(ctx, args)

    return _Group
