"""A verb that does its main work without a sub-command's name: `ept-fed provision federation.yaml`."""

from typing import Any

import click
from typer.core import TyperGroup

__all__ = ["group_with_default"]


def group_with_default(default: str) -> type[TyperGroup]:
    """Return a group whose first word, where it is neither a sub-command nor an option, belongs to `default`."""

    class _Group(TyperGroup):
        def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
            if args and args[0] not in self.commands and not args[0].startswith("-"):
                args = [default, *args]
            return super().resolve_command(ctx, args)

    return _Group
