"""One cell of a benchmark's grid: what it trains with, and the key under which its numbers are kept."""

import hashlib
import json
from dataclasses import dataclass

from ept_fed.config.benchmark import Fold, Setting
from ept_fed.config.experiment import Experiment

__all__ = ["Cell"]


@dataclass(frozen=True)
class Cell:
    """One training of the grid.

    Attributes:
        method: the row's name.
        shots: images per class and site; None for all.
        sampling: of splits and shots; None: the seed's own.
        seed: of everything else that is random.
        setting: how the sites work together.
        fold: the images that its numbers are measured on.
        experiment: the settings that this cell trains with.
    """

    method: str
    shots: int | None
    sampling: int | None
    seed: int
    setting: Setting
    fold: Fold
    experiment: Experiment

    @property
    def key(self) -> str:
        """16 hex digits of the SHA-256 of all that the cell's numbers depend on; names of rows are not among it."""
        identity = json.dumps([self.experiment.run_id, self.setting, self.fold])
        return hashlib.sha256(identity.encode()).hexdigest()[:16]

    @property
    def title(self) -> str:
        """What a person calls the cell."""
        shots = "all images" if self.shots is None else f"{self.shots} shots"
        sampling = "" if self.sampling is None else f"sampling {self.sampling}, "
        return f"{self.method}, {shots}, {sampling}seed {self.seed}, {self.setting}"
