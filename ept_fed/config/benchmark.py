"""The grid of `ept-fed benchmark`: its axes, and the ways of working together that it compares."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from ept_fed.catalog.methods import METHODS
from ept_fed.config.base import Count, Seed, Settings

__all__ = ["SETTINGS", "BenchmarkSettings", "Fold", "Setting", "SettingInfo"]

Setting = Literal["local", "federated", "federated+head", "centralised", "centralised-prompts"]
Fold = Literal["test", "validation"]


@dataclass(frozen=True)
class SettingInfo:
    """One way of working together.

    Attributes:
        heading: of its column in a table.
        prompts_only: what a site gets of the others is prompts without a head, so a method that has nothing beside
            the head has no cell there.
        shares_head: the head travels too, so one that belongs to its site cannot take part.
    """

    heading: str
    prompts_only: bool = False
    shares_head: bool = False


SETTINGS: dict[Setting, SettingInfo] = {
    "local": SettingInfo("local only"),
    "federated": SettingInfo("federated, personalised head", prompts_only=True),
    "federated+head": SettingInfo("federated, shared head", shares_head=True),
    "centralised": SettingInfo("centralised"),
    "centralised-prompts": SettingInfo("centralised prompts, personalised head", prompts_only=True),
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
        description="local: each site trains only on its own images; federated: personalised heads; federated+head: "
        "the head is averaged too; centralised: all images in one place; centralised-prompts: prompts trained there, "
        "then frozen at each site under a personalised head, to see what averaging costs",
    )
    fold: Fold = Field("test", description="the images that count; choose settings on validation, and report on test")
    reference: str = Field("ept", description="the row that the others are paired with, by shots, seed and setting")
