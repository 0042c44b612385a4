"""The progress interface of a long run: stages, rounds, sites and their current numbers."""

from collections.abc import Mapping
from typing import Protocol

__all__ = ["Progress", "Silent"]


class Progress(Protocol):
    """Receives the progress of a simulation; implemented by displays and by tests."""

    def on_note(self, sentence: str) -> None:
        """Handle a sentence for the user, such as a class that a site lacks or images that were dropped."""

    def on_stage(self, stage: str, sites: tuple[str, ...], rounds: int) -> None:
        """Handle the start of a stage (federated, local, centralised) over these sites."""

    def on_site(self, round_number: int, site: str, numbers: Mapping[str, float]) -> None:
        """Handle new numbers of a site: the training `loss`, and the `auc` on validation images."""

    def on_round(self, round_number: int, seconds: float) -> None:
        """Handle the end of a round of the current stage."""


class Silent:
    """A `Progress` that shows nothing."""

    def on_note(self, sentence: str) -> None:
        """Ignore the note."""

    def on_stage(self, stage: str, sites: tuple[str, ...], rounds: int) -> None:
        """Ignore the stage."""

    def on_site(self, round_number: int, site: str, numbers: Mapping[str, float]) -> None:
        """Ignore the numbers."""

    def on_round(self, round_number: int, seconds: float) -> None:
        """Ignore the round."""
