"""What a self-attack found: rows that people, spreadsheets and machines read, kept as attack.json and attack.csv."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from math import nan
from pathlib import Path
from typing import Any

from ept_fed.storage.files import write_csv, write_json

__all__ = ["ASSUMPTIONS", "ATTACK_SCHEMA", "PARTS", "AttackRow", "write_attack"]

ATTACK_SCHEMA = 1
PARTS = ("membership", "control", "known membership", "crafted", "inversion", "known inversion")

ASSUMPTIONS = {
    "membership": (
        "The attacker holds the frozen backbone, the prompts before the round, this site's own update (no secure "
        "aggregation), each candidate image with its label, and the head with which the site began the round: in the "
        "first round anybody can derive that head from the run's seed, later it is a gift to the attacker. Members are "
        "the site's training images, the others its validation and test images, equally many of each class."
    ),
    "inversion": (
        "The strongest case for the attacker: the update is one step of plain SGD over the batch, without "
        "augmentation, so it is the gradient; labels, head, backbone and the prompts before are known, and so is the "
        "mean of the site's other images, from which the search starts. An update of many steps of AdamW over "
        "augmented images, as the run really made, is another problem, which was not tried; the default policy refuses "
        "updates from fewer than ten images. A search of few steps that ends farther from the images than their mean "
        "shows a weak search, not a safe update."
    ),
    "crafted": (
        "The server replaces the prompts of the round by sinks that let one token alone attend, and scores members "
        "by what comes back. With the gate on it goes as far towards them in one round as the policy's "
        "incoming.prompt_change lets it; with the gate off, all the way."
    ),
    "control": (
        "Another site's update of the same round, which trained on none of these images, scores them: what is not 0.5 "
        "here comes from the images, not from having been trained on."
    ),
    "known membership": (
        "No site sends these: a head that was fitted to the members alone until it knows them, and the bare gradient "
        "of a batch of eight that the image was in. A score that does not tell members from others here does not work."
    ),
    "known inversion": (
        "No site sends these either: the gradients of a linear model of the pixels, and of the ViT's patch embedding "
        "and positions, determine an image. The last row solves for it instead of searching. A search that misses the "
        "image where it is determined shows nothing where it misses it elsewhere."
    ),
    "all": (
        "One run, one seed, few images, and attacks from the literature that were not adapted to these prompts: a "
        "number near guessing does not prove that nothing leaks."
    ),
}


@dataclass(frozen=True)
class AttackRow:
    """One measured number.

    Attributes:
        part: one of `PARTS`.
        site: whose update it was.
        round: which round's.
        prompts: what the server sent: "the run's own" or crafted.
        payload: what of the update the attacker sees.
        sent: whether that is what this run really sends.
        measure: "AUC, loss drop", "AUC, cosine", "PSNR" or "SSIM".
        batch: images behind the update, for inversion; 0 otherwise.
        images: candidates, or images reconstructed.
        value: of the measure.
        low: of its 95 % interval over patients; NaN for fewer than ten.
        high: likewise.
        gain: mean difference to guessing the mean image, for inversion; NaN otherwise.
        gain_low: of its interval.
        gain_high: likewise.
    """

    part: str
    site: str
    round: int
    prompts: str
    payload: str
    sent: bool
    measure: str
    batch: int
    images: int
    value: float
    low: float
    high: float
    gain: float = nan
    gain_low: float = nan
    gain_high: float = nan


def write_attack(folder: Path, document: Mapping[str, Any], rows: Sequence[AttackRow]) -> dict[str, Any]:
    """Write attack.json and attack.csv into a run folder, and return what attack.json holds."""
    found = {"schema": ATTACK_SCHEMA, "assumptions": ASSUMPTIONS, **document, "rows": [asdict(row) for row in rows]}
    write_json(folder / "attack.json", found)
    write_csv(folder / "attack.csv", [asdict(row) for row in rows], [field.name for field in fields(AttackRow)])
    return found
