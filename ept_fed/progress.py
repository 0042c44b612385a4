"""What a long run tells whoever watches: stages, rounds, sites, and the numbers as they come."""

from collections.abc import Mapping
from typing import Protocol

__all__ = ["Progress", "Silent"]


class Progress(Protocol):
    """A watcher of a simulation; a display implements it, and so does a test."""

    def on_note(self, sentence: str) -> None:
        """Handle a sentence a person should see: what a site lacks, what was dropped."""

    def on_stage(self, stage: str, sites: tuple[str, ...], rounds: int) -> None:
        """Handle the start of a stage (federated, local, centralised) over these sites."""

    def on_site(self, round_number: int, site: str, numbers: Mapping[str, float]) -> None:
        """Handle new numbers of a site: `loss` of training, `auc` on validation."""

    def on_round(self, round_number: int, seconds: float) -> None:
        """Handle the end of a round of the current stage."""


class Silent:
    """A watcher that shows nothing."""

    def on_note(self, sentence: str) -> None:
        """Ignore the note."""

    def on_stage(self, stage: str, sites: tuple[str, ...], rounds: int) -> None:
        """Ignore the stage."""

    def on_site(self, round_number: int, site: str, numbers: Mapping[str, float]) -> None:
        """Ignore the numbers."""

    def on_round(self, round_number: int, seconds: float) -> None:
        """Ignore the round."""
