"""Checkpoints: one checksummed file per round with all that the server needs to continue; all rounds are kept.

A killed run resumes after the last complete checkpoint. The requests of the next round are then sent again. The sites
answer them from their own state before that round, so the resulting prompts are the same, bit for bit.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ept_fed
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.protocol.layout import PayloadMismatchError, Vector
from ept_fed.reports.run.round_record import RoundRecord
from ept_fed.run_plan.plan import Plan
from ept_fed.storage.checkpoint_file import DamagedCheckpointError, read_checksummed, write_checksummed
from ept_fed.storage.files import dump_json
from server.rounds.selection import BestRound

__all__ = ["Checkpoint", "CheckpointFolder"]

_PAYLOAD, _BEST, _STATE = "payload", "best payload", "state/"


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after a round.

    Attributes:
        payload: the payload after the round.
        strategy: the strategy's state, by name.
        records: the records of all rounds so far; the last one has no evaluation of its payload yet.
        best: the best round before it.
    """

    payload: Vector
    strategy: Mapping[str, Vector]
    records: Sequence[RoundRecord]
    best: BestRound


class CheckpointFolder:
    """A folder with one file per round (`round-0007.safetensors`); rounds.jsonl has the records of earlier rounds."""

    def __init__(self, folder: Path, plan: Plan, data: str = "") -> None:
        """Use a folder; `load` refuses files of another plan, or of other data if the data digest is given."""
        self._folder, self._plan = folder, plan
        self._identity = {
            "schema": 2,
            "code": ept_fed.__version__,
            "run": plan.run,
            "seed": plan.seed,
            "backbone_digest": plan.backbone_digest,
            "layout_hash": plan.layout.hash,
            "strategy": plan.strategy,
            "sites": list(plan.sites),
            "data": data,
        }

    def save(self, checkpoint: Checkpoint) -> None:
        """Write the newest round's file, without the records of earlier rounds."""
        record = checkpoint.records[-1]
        best = checkpoint.best
        about = {
            **self._identity,
            "round": record.round,
            "record": json.loads(dump_json(record.to_json())),
            "best": {"auc": None if math.isinf(best.auc) else best.auc, "since": best.since, "round": best.round},
        }
        tensors = {_PAYLOAD: checkpoint.payload} | {
            f"{_STATE}{name}": vector for name, vector in checkpoint.strategy.items()
        }
        if best.payload is not None:
            tensors[_BEST] = best.payload
        write_checksummed(self._path(record.round), tensors, about)

    def load(self, lines: Sequence[RoundRecord]) -> Checkpoint | None:
        """Return the newest checkpoint, or None if there is none yet.

        Args:
            lines: the lines of rounds.jsonl; only those of rounds before the checkpoint's round are used.

        Raises:
            InputRefusedError: if the newest file is damaged or of another run, or if earlier records are missing.
        """
        rounds = self._rounds()
        if not rounds:
            return None
        tensors, about = self._read(rounds[-1], rounds[:-1])
        try:
            self._plan.layout.check(tensors[_PAYLOAD])
            record = RoundRecord.from_json(about["record"])
            earlier = lines[: record.round - 1]
            best = _read_best(about["best"], tensors.get(_BEST))
            if best.payload is not None:
                self._plan.layout.check(best.payload)
        except (KeyError, TypeError, ValueError, PayloadMismatchError) as error:
            raise _refuse(self._path(rounds[-1]), f"does not contain a round ({error})", rounds[:-1]) from error
        if [held.round for held in earlier] != list(range(1, record.round)):
            fix = f"lacks some of the rounds 1 to {record.round - 1} before the checkpoint; restore the file"
            raise InputRefusedError([Problem("--resume", "rounds.jsonl", fix)])
        state = {name.removeprefix(_STATE): tensor for name, tensor in tensors.items() if name.startswith(_STATE)}
        return Checkpoint(tensors[_PAYLOAD], state, (*earlier, record), best)

    def _read(self, round_number: int, earlier: Sequence[int]) -> tuple[dict[str, Vector], dict[str, Any]]:
        path = self._path(round_number)
        try:
            tensors, about = read_checksummed(path)
        except DamagedCheckpointError as broken:
            raise _refuse(path, str(broken).removeprefix(f"{path} "), self._sound(earlier)) from broken
        expected = {**self._identity, "round": round_number}
        differing = [key for key, value in expected.items() if about.get(key) != value]
        if differing:
            pairs = "; ".join(f"{key}: its {about.get(key)}, ours {expected[key]}" for key in differing)
            raise InputRefusedError([Problem("--resume", str(path), f"belongs to another run ({pairs})")])
        return tensors, about

    def _sound(self, rounds: Sequence[int]) -> list[int]:
        sound = []
        for round_number in rounds:
            try:
                read_checksummed(self._path(round_number))
            except DamagedCheckpointError:
                continue
            sound.append(round_number)
        return sound

    def _rounds(self) -> list[int]:
        names = [path.stem.removeprefix("round-") for path in self._folder.glob("round-*.safetensors")]
        return sorted(int(name) for name in names if name.isdigit())

    def _path(self, round_number: int) -> Path:
        return self._folder / f"round-{round_number:04d}.safetensors"


def _read_best(about: Mapping[str, Any], payload: Vector | None) -> BestRound:
    auc = -math.inf if about["auc"] is None else float(about["auc"])
    if (payload is None) != (about["round"] == 0):
        raise ValueError("the best round has no payload, or a payload has no round")
    return BestRound(auc, int(about["since"]), int(about["round"]), payload)


def _refuse(path: Path, what: str, sound: Sequence[int]) -> InputRefusedError:
    where = f"continue after round {sound[-1]}, the last valid one" if sound else "start again from round 1"
    return InputRefusedError([Problem("--resume", str(path), f"{what}; remove it to {where}")])
