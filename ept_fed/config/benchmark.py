"""The grid of `ept-fed benchmark`, and what one of its cells is."""

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from ept_fed.catalog.methods import METHODS
from ept_fed.config.base import Count, Seed, Settings

if TYPE_CHECKING:
    from ept_fed.config.experiment import Experiment

__all__ = ["SETTINGS", "BenchmarkSettings", "Cell", "Fold", "Setting", "SettingInfo"]

Setting = Literal["local", "federated", "federated+head", "centralised", "centralised-prompts"]
Fold = Literal["test", "validation"]


@dataclass(frozen=True)
class SettingInfo:
    """One way of working together.

    Attributes:
        heading: of its column in a table.
        prompts_alone: what a site gets of the others is prompts without a head, so a method that has nothing beside
            the head has no cell there.
        shares_head: the head travels too, so one that belongs to its site cannot take part.
    """

    heading: str
    prompts_alone: bool = False
    shares_head: bool = False


SETTINGS: dict[Setting, SettingInfo] = {
    "local": SettingInfo("alone"),
    "federated": SettingInfo("federated, head at home", prompts_alone=True),
    "federated+head": SettingInfo("federated, head shared", shares_head=True),
    "centralised": SettingInfo("images pooled"),
    "centralised-prompts": SettingInfo("prompts of pooled images, head at home", prompts_alone=True),
}


class BenchmarkSettings(Settings):
    """What `ept-fed benchmark` compares: methods × shots × samplings × seeds × settings. `simulate` ignores it."""

    methods: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        tuple(METHODS),
        description="rows of the table: names of docs/methods.md or of `variants`, or patterns such as 'depth *'",
    )
    variants: dict[str, tuple[str, ...]] = Field(
        {},
        description="by name, settings as after --set, of data, model, training or federation; under a method's name "
        "they hold for it wherever it is compared",
    )
    shots: tuple[Count | None, ...] = Field(
        (), description="images per class and site, null for all of them; empty takes data.shots"
    )
    samplings: tuple[Seed, ...] = Field(
        (),
        description="seeds of splits and K-shot samples, or numbers of MedFMC's published ones; each runs with every "
        "seed; empty: a seed samples too",
    )
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = Field(
        (0, 1, 2), description="each starts the model and orders the images anew"
    )
    settings: Annotated[tuple[Setting, ...], Field(min_length=1)] = Field(
        ("local", "federated", "federated+head", "centralised"),
        description="alone; heads at home; heads averaged too; all images in one place; prompts trained there and then "
        "held still at each site under a head of its own, for what averaging costs",
    )
    fold: Fold = Field("test", description="the images that count; choose settings on validation, and report on test")
    reference: str = Field("ept", description="the row that the others are paired with, by shots, seed and setting")


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
    experiment: "Experiment"

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
