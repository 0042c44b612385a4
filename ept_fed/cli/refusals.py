"""Output of a refusal: every problem with its field, value and fix on stderr, and exit code 2."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from ept_fed.errors import InputRefusedError

__all__ = ["DONE", "FAILED", "FAULTS", "REFUSED", "exit_on_refusal"]

DONE, FAILED, REFUSED, FAULTS = 0, 1, 2, 3


@contextmanager
def exit_on_refusal(*, as_json: bool) -> Iterator[None]:
    """Turn `InputRefusedError` into a message on stderr, or JSON on stdout, and exit with code 2."""
    try:
        yield
    except InputRefusedError as refusal:
        if as_json:
            problems = [{"field": p.field, "value": str(p.value), "fix": p.fix} for p in refusal.problems]
            typer.echo(json.dumps({"status": "refused", "problems": problems}))
        else:
            count = len(refusal.problems)
            typer.echo(f"Nothing was started: {count} problem{'s' if count > 1 else ''}.", err=True)
            for problem in refusal.problems:
                typer.echo(f"  * {problem}", err=True)
        raise typer.Exit(REFUSED) from None
