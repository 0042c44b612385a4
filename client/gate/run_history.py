"""The gate's history of each run, rebuilt from the ledger; it prevents replays and large jumps of the prompts.

The prompts that were accepted last are not part of the ledger. They are in one file per run, which is written without
waiting for the disk. After a power failure the file may hold older prompts or none; without prompts the run has to be
proposed again.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Self

from client.ledger.entry import Entry
from ept_fed.protocol.layout import PayloadLayout, Vector
from ept_fed.protocol.stage_messages import STAGES
from ept_fed.storage.checkpoint_file import DamagedCheckpointError, read_checksummed, serialize_checksummed

__all__ = [
    "NOISE",
    "SECURE",
    "SEED",
    "SPLITS",
    "WITHHELD",
    "KnownRun",
    "PromptStore",
    "RequestKey",
    "load_runs",
    "pinned_backbone",
    "pinned_splits",
]

RequestKey = tuple[int, str, str]  # round, phase, what is evaluated
SECURE = "masked among"  # key in the `about` of a proposal with secure aggregation: the participating sites
SEED = "seed"  # key in the `about` of every proposal
NOISE = "noise"  # key in the `about` of a proposal with noise on whole updates: its source, and whether metrics leave
SPLITS = "splits"  # key in the `about` of the first message that passed under a privacy budget
WITHHELD = "metrics withheld"
_PROMPTS = "prompts"


@dataclass
class KnownRun:
    """A run that was proposed to this site.

    Attributes:
        proposal: digest of the accepted proposal.
        backbone: digest of the backbone in the site's introduction; None before the introduction.
        layout: hash of the payload's layout in the introduction; None before it.
        validation_images: number of the site's validation images in this run.
        secure: whether its updates leave under secure aggregation.
        seed: seed of the run.
        noise: source of the noise on whole updates, and whether metrics leave; None without such noise.
        last_secure_round: last round whose update left under secure aggregation; 0 if none did.
        masked_tensors: names of the tensors that left under secure aggregation.
        last_update: when an update left last, in any way; None if none did.
        last_round: highest round of the accepted requests.
        accepted: SHA-256 of the frame of every accepted request.
    """

    proposal: str
    backbone: str | None = None
    layout: str | None = None
    validation_images: int = 0
    secure: bool = False
    seed: str | None = None
    noise: str | None = None
    last_secure_round: int = 0
    masked_tensors: frozenset[str] = frozenset()
    last_update: datetime | None = None
    last_round: int = 0
    accepted: dict[RequestKey, str] = field(default_factory=dict)

    @classmethod
    def agree(cls, about: Mapping[str, str]) -> Self:
        """Return a run that was just agreed to, from the `about` of its proposal in the ledger."""
        return cls(about["proposal"], secure=SECURE in about, seed=about.get(SEED), noise=about.get(NOISE))

    @property
    def silent(self) -> bool:
        """Whether loss and quality metrics stay at the site."""
        return self.noise is not None and self.noise.endswith(WITHHELD)

    @property
    def own_noise(self) -> bool:
        """Whether this site adds noise to its updates, so that the update without noise never leaves it."""
        return self.noise is not None and not self.noise.startswith("central")

    def introduce(self, about: Mapping[str, str]) -> None:
        """Store the values of the site's introduction, from its `about` in the ledger."""
        self.backbone, self.layout = about["backbone"], about["layout"]
        self.validation_images = int(about["validation_images"])

    def leave(self, when: datetime) -> None:
        """Store that an update left."""
        self.last_update = when

    def leave_masked(self, round_number: int, tensors: Iterable[str], when: datetime) -> None:
        """Store that the update of a round left under secure aggregation."""
        self.last_secure_round = max(self.last_secure_round, round_number)
        self.masked_tensors |= frozenset(tensors)
        self.leave(when)

    def accept(self, key: RequestKey, sha256: str) -> None:
        """Store an accepted request."""
        self.accepted[key] = sha256
        self.last_round = max(self.last_round, key[0])


def load_runs(history: Iterable[Entry]) -> dict[str, KnownRun]:
    """Return all runs in the ledger, by name."""
    runs: dict[str, KnownRun] = {}
    for entry in history:
        if entry.decision not in ("passed", "clipped") or entry.run is None:
            continue
        if entry.kind == "introduce" and entry.direction == "in":
            runs.setdefault(entry.run, KnownRun.agree(entry.about))
        elif entry.kind == "introduction" and entry.direction == "out":
            runs[entry.run].introduce(entry.about)
        elif entry.kind == "masked input" and entry.direction == "out" and entry.round is not None:
            runs[entry.run].leave_masked(entry.round, (name for name, _ in entry.tensors), entry.at)
        elif entry.kind == "train" and entry.direction == "out" and not runs[entry.run].secure:
            runs[entry.run].leave(entry.at)
        elif entry.direction == "in" and entry.kind in STAGES:
            continue
        elif entry.direction == "in" and entry.round is not None and entry.sha256 is not None:
            runs[entry.run].accept((entry.round, entry.kind, entry.split or ""), entry.sha256)
    return runs


def pinned_backbone(history: Iterable[Entry]) -> str | None:
    """Return the backbone's digest in the first introduction that left; None if none did."""
    passed = (entry for entry in history if entry.kind == "introduction" and entry.decision == "passed")
    return next((entry.about["backbone"] for entry in passed), None)


def pinned_splits(history: Iterable[Entry]) -> str | None:
    """Return how images were split when the first message passed under a privacy budget; None if none did."""
    passed = (entry for entry in history if entry.decision in ("passed", "clipped"))
    return next((entry.about[SPLITS] for entry in passed if SPLITS in entry.about), None)


class PromptStore:
    """The prompts accepted last, per run, in a folder."""

    def __init__(self, folder: Path) -> None:
        """Take the folder, and make it if needed."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder = folder
        self._held: dict[str, tuple[int, Vector]] = {}

    def latest(self, run: str, layout: PayloadLayout) -> tuple[int, Vector] | None:
        """Return the round that produced the prompts, and the prompts; None if they are lost or do not fit."""
        if run not in self._held:
            try:
                tensors, about = read_checksummed(self._path(run))
                if about["run"] == run and about["layout"] == layout.hash:
                    self._held[run] = int(about["stage"]), tensors[_PROMPTS]
            except (DamagedCheckpointError, KeyError):
                return None
        found = self._held.get(run)
        return found if found is not None and found[1].shape == (layout.size,) else None

    def keep(self, run: str, layout: PayloadLayout, stage: int, prompts: Vector) -> None:
        """Store prompts as the latest of their run."""
        self._held[run] = stage, prompts.copy()
        content = serialize_checksummed(
            {_PROMPTS: prompts}, {"schema": 1, "run": run, "layout": layout.hash, "stage": stage}
        )
        # Written in place, because renaming a file would wait for the disk. The checksum detects a partially written
        # file, which counts as lost.
        handle = os.open(self._path(run), os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.pwrite(handle, content, 0)
            os.ftruncate(handle, len(content))
        finally:
            os.close(handle)

    def _path(self, run: str) -> Path:
        return self._folder / f"{run}.safetensors"
