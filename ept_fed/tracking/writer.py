"""What every tracker must do, and what it is told at the start."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

__all__ = ["TrackedRun", "Writer"]


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told at the start.

    Attributes:
        name: of the experiment.
        run: its run id.
        settings: see `ept_fed.tracking.scalars.describe_settings`.
    """

    name: str
    run: str
    settings: Mapping[str, str | float | bool]


class Writer(Protocol):
    """One store of numbers. Every method may raise what the package behind it raises."""

    def write_round(self, number: int, scalars: Mapping[str, float]) -> None:
        """Enter a round's numbers; those of a round that the store already holds are left as they are."""

    def write_result(self, number: int, scalars: Mapping[str, float], table: str) -> None:
        """Enter the table at the end, as numbers after so many rounds and as Markdown."""

    def close(self, *, done: bool) -> None:
        """End; `done` is False for a run that failed or was stopped."""
