"""The grid of `ept-fed benchmark`: its axes, and the collaboration settings that it compares."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from ept_fed.catalog.methods import METHODS
from ept_fed.config.base import Count, Seed, Settings

__all__ = ["SETTINGS", "BenchmarkSettings", "Fold", "Setting", "SettingInfo"]

Setting = Literal["local", "federated", "federated+head", "chosen", "centralised", "centralised-prompts"]
Fold = Literal["test", "validation"]


@dataclass(frozen=True)
class SettingInfo:
    """One collaboration setting, such as local only, federated or centralised.

    Attributes:
        heading: heading of its column in a table.
        prompts_only: whether sites receive only prompts and no head. A method that trains only the head has no cell
            in this setting.
        shares_head: whether the head is exchanged too. A row whose head cannot be shared has no cell in this setting.
    """

    heading: str
    prompts_only: bool = False
    shares_head: bool = False


SETTINGS: dict[Setting, SettingInfo] = {
    "local": SettingInfo("local only"),
    "federated": SettingInfo("federated, personalised head", prompts_only=True),
    "federated+head": SettingInfo("federated, shared head", shares_head=True),
    "chosen": SettingInfo("each site's choice"),
    "centralised": SettingInfo("centralised"),
    "centralised-prompts": SettingInfo("centralised prompts, personalised head", prompts_only=True),
}


class BenchmarkSettings(Settings):
    """The grid of `ept-fed benchmark`: methods × shots × samplings × seeds × settings. `simulate` ignores it."""

    methods: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        tuple(METHODS),
        description="rows of the table: names of docs/methods.md or of `variants`, or patterns such as 'depth *'",
    )
    variants: dict[str, tuple[str, ...]] = Field(
        {},
        description="by name: settings of data, model, training or federation, written as after --set; an entry with "
        "a method's name applies to that method in every comparison",
    )
    shots: tuple[Count | None, ...] = Field(
        (), description="images per class and site, null for all of them; empty: data.shots is used"
    )
    budgets: dict[Annotated[str, Field(pattern=r"^([1-9]\d*|all)$")], tuple[str, ...]] = Field(
        {},
        description="by images per class such as '30', or all: settings of the cells with so many, written as after "
        "--set, because training on more images ends after fewer epochs; a variant's own settings have precedence",
    )
    samplings: tuple[Seed, ...] = Field(
        (),
        description="seeds of splits and K-shot samples, or numbers of MedFMC's published samplings; each is combined "
        "with every seed; empty: each seed also draws its own splits and samples",
    )
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = Field(
        (0, 1, 2), description="each seed gives a new initialisation of the model and a new order of the images"
    )
    settings: Annotated[tuple[Setting, ...], Field(min_length=1)] = Field(
        ("local", "federated", "federated+head", "centralised"),
        description="local: each site trains only on its own images; federated: personalised heads; federated+head: "
        "the head is averaged too; chosen: local, federated (with the head if it can be averaged), and what each site "
        "chooses of them, as after ept-fed simulate; centralised: all images in one place; centralised-prompts: "
        "centralised prompts, frozen at each site under a personalised head, which measures the cost of averaging",
    )
    fold: Fold = Field(
        "test", description="the images to evaluate on; choose settings on validation, and report results on test"
    )
    home: tuple[str, ...] = Field(
        (),
        description="rows between whose local models each site chooses by AUC on its own validation images; the chosen "
        "one is then the local model that every row is compared with; empty: each row is compared with its own",
    )
    reference: str = Field(
        "ept", description="the row that every other row is compared with, paired by shots, seed and setting"
    )
