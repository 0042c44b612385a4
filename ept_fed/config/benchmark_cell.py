"""One cell of a benchmark's grid: its settings, and the key under which its numbers are stored."""

import hashlib
import json
from dataclasses import dataclass, replace

from ept_fed.config.benchmark import Fold, Setting
from ept_fed.config.experiment import Experiment

__all__ = ["Cell"]


@dataclass(frozen=True)
class Cell:
    """One training run of the grid.

    Attributes:
        method: name of the row.
        shots: images per class and site; None for all.
        sampling: seed or number of the splits and K-shot samples; None: `seed` is used.
        seed: seed of all other random choices.
        setting: how the sites collaborate.
        fold: the images that the numbers are measured on.
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
        """Key of the cell: 16 hex digits of the SHA-256 of everything that its numbers depend on.

        The name of the row is not included.
        """
        identity = json.dumps([self.experiment.run_id, self.setting, self.fold])
        return hashlib.sha256(identity.encode()).hexdigest()[:16]

    @property
    def parts(self) -> "tuple[Cell, ...]":
        """The cells of the federated and the local model of a choice, which are trained with it; none for others."""
        if self.setting != "chosen":
            return ()
        shares_head = self.experiment.federation.share == "prompts+head"
        return replace(self, setting="federated+head" if shares_head else "federated"), replace(self, setting="local")

    @property
    def title(self) -> str:
        """Readable title of the cell."""
        shots = "all images" if self.shots is None else f"{self.shots} shots"
        sampling = "" if self.sampling is None else f"sampling {self.sampling}, "
        return f"{self.method}, {shots}, {sampling}seed {self.seed}, {self.setting}"
