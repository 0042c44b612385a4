"""The interface of every tracker, and the description of a run that it receives at the start."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

__all__ = ["TrackedRun", "Writer"]


@dataclass(frozen=True)
class TrackedRun:
    """The description of a run that a tracker receives at the start.

    Attributes:
        name: name of the experiment.
        run: id of the run.
        settings: see `ept_fed.tracking.scalars.describe_settings`.
    """

    name: str
    run: str
    settings: Mapping[str, str | float | bool]


class Writer(Protocol):
    """One store of numbers. Every method may raise the exceptions of its tracking package."""

    def write_round(self, number: int, scalars: Mapping[str, float]) -> None:
        """Write a round's numbers; a round that the store already has remains unchanged."""

    def write_result(self, number: int, scalars: Mapping[str, float], table: str) -> None:
        """Write the final table as scalars at step `number`, the last round, and as Markdown."""

    def close(self, *, done: bool) -> None:
        """Close the store; `done` is False for a run that failed or was stopped."""
