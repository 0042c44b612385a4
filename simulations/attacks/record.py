"""Results of a self-attack: rows for people, spreadsheets and programs, written to attack.json and attack.csv."""

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
        "The attacker has the frozen backbone, the prompts before the round, this site's own update (no secure "
        "aggregation), each candidate image with its label, and the head with which the site began the round. In the "
        "first round anybody can derive that head from the run's seed; in later rounds it is an extra advantage for "
        "the attacker. Members are the site's training images; the others are its validation and test images, equally "
        "many of each class."
    ),
    "inversion": (
        "The best case for the attacker: the update is one step of plain SGD over the batch, without augmentation, so "
        "it is the gradient. The attacker knows labels, head, backbone, the prompts before the round, and the mean of "
        "the site's other images, from which the search starts. A real update of the run consists of many steps of "
        "AdamW over augmented images. This is a different problem, which was not tried. The default policy refuses "
        "updates from fewer than ten images. If a search of few steps ends farther from the images than their mean, "
        "the search is weak; this does not show that the update is safe."
    ),
    "crafted": (
        "The server replaces the prompts of the round by sinks that let only one token attend, and scores members by "
        "the update that it receives. With the gate on, it moves towards these sinks in one round as far as the "
        "policy's incoming.prompt_change allows; with the gate off, it sends them as they are."
    ),
    "control": (
        "The images are scored by another site's update of the same round, which was trained on none of them. A value "
        "other than 0.5 here comes from the images, not from training on them."
    ),
    "known membership": (
        "No site sends these: a head that was fitted only to the members until it memorised them, and the bare "
        "gradient of a batch of eight that contains the image. A score that does not separate members from others here "
        "does not work."
    ),
    "known inversion": (
        "No site sends these either: the gradients of a linear model of the pixels, and of the ViT's patch embedding "
        "and positions, determine an image. The last row solves for it instead of searching. If a search does not find "
        "the image here, its failures elsewhere show nothing."
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
        site: site whose update was attacked.
        round: round of the update.
        prompts: prompts that the server sent: "the run's own" or crafted.
        payload: part of the update that the attacker sees.
        sent: whether this run really sends this part.
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
    """Write attack.json and attack.csv into a run folder, and return the content of attack.json."""
    found = {"schema": ATTACK_SCHEMA, "assumptions": ASSUMPTIONS, **document, "rows": [asdict(row) for row in rows]}
    write_json(folder / "attack.json", found)
    write_csv(folder / "attack.csv", [asdict(row) for row in rows], [field.name for field in fields(AttackRow)])
    return found
