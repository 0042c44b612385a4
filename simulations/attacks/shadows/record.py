"""Results of the attack with shadow runs, written to attack-full.json and attack-full.csv."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ept_fed.storage.files import write_csv, write_json

__all__ = ["FULL_ASSUMPTIONS", "FullRow", "write_full_attack"]

_SCHEMA = 1

FULL_ASSUMPTIONS = {
    "membership": (
        "The attacker has the frozen backbone, the run's settings and seed, and the candidate images with their labels "
        "and sites. He trains federations like this one on images that he chose: each of them has half of the "
        "candidates. The others are images of the same sites and classes, of patients on whom the run did not train. "
        "Under secure aggregation the server sees the averages of the rounds and no site's own update; another site "
        "sees the averages in any case, and whoever has a bundle sees the released prompts."
    ),
    "others": (
        "The same, without shadow runs: the updates of the other sites show how an image is answered by models that "
        "were not trained on it. Only a server without secure aggregation sees single updates."
    ),
    "crafted": (
        "A malicious server sends prompts that classify one image badly, and sees how far the site's update corrects "
        "that. With the gate on, they go as far as the policy's incoming.prompt_change allows. For a few images of the "
        "first site, in one round; each image needs a round of its own."
    ),
    "control": "Members were drawn at random within each site and class. An attack must not find these.",
    "known": (
        "No site sends this: a linear head that was fitted to the training images until it had memorised them. An "
        "attack that does not find the members here does not work."
    ),
}


@dataclass(frozen=True)
class FullRow:
    """One attack on one view.

    Attributes:
        part: "membership", "others" (the other sites in place of shadow runs), "crafted", "control" or
            "known".
        seen: what the attacker sees.
        attack: how he scores an image.
        target: "this run", or "each shadow run in turn".
        runs: number of attacked runs.
        members: number of pairs of a candidate and a run that was trained on it.
        others: number of pairs of a candidate and a run that was not.
        auc: area under the ROC curve; 0.5 is guessing. With its 95 % interval over patients.
        at_1: share of members that are found if 1 % of the others is taken for members, with its interval.
        at_01: the same for 0.1 %.
    """

    part: str
    seen: str
    attack: str
    target: str
    runs: int
    members: int
    others: int
    auc: float
    auc_low: float
    auc_high: float
    at_1: float
    at_1_low: float
    at_1_high: float
    at_01: float
    at_01_low: float
    at_01_high: float


def write_full_attack(folder: Path, document: Mapping[str, Any], rows: Sequence[FullRow]) -> dict[str, Any]:
    """Write attack-full.json and attack-full.csv into a run folder, and return the content of the former."""
    found = {"schema": _SCHEMA, "assumptions": FULL_ASSUMPTIONS, **document, "rows": [asdict(row) for row in rows]}
    write_json(folder / "attack-full.json", found)
    write_csv(folder / "attack-full.csv", [asdict(row) for row in rows], [field.name for field in fields(FullRow)])
    return found
