"""Checkpoints: after each round all that the server needs to go on, in one sealed file; every round is kept.

A killed run resumes after the last whole checkpoint. Requests of the next round are then sent again, and sites answer
them from their own state before that round, so the prompts come out the same, bit for bit.
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

__all__ = ["Checkpoint", "CheckpointFolder"]

_PAYLOAD, _STATE = "payload", "state/"


@dataclass(frozen=True)
class Checkpoint:
    """A run after a round.

    Attributes:
        payload: what the round left.
        strategy: what the strategy remembers, by name.
        records: of all rounds so far; the last one still lacks the evaluation of its payload.
        stopping: of the early stop: best mean AUC so far, and rounds since.
    """

    payload: Vector
    strategy: Mapping[str, Vector]
    records: Sequence[RoundRecord]
    stopping: tuple[float, int]


class CheckpointFolder:
    """`round-0007.safetensors` for each round, beside a rounds.jsonl that holds the records before it."""

    def __init__(self, folder: Path, plan: Plan, data: str = "") -> None:
        """Take a folder; files of another plan, or of other data if their digest is known, are refused when read."""
        self._folder, self._plan = folder, plan
        self._identity = {
            "schema": 1,
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
        """Write the newest round's file; earlier rounds' records are not repeated in it."""
        record = checkpoint.records[-1]
        best, since = checkpoint.stopping
        about = {
            **self._identity,
            "round": record.round,
            "record": json.loads(dump_json(record.to_json())),
            "stopping": {"best": None if math.isinf(best) else best, "since": since},
        }
        tensors = {_PAYLOAD: checkpoint.payload} | {
            f"{_STATE}{name}": vector for name, vector in checkpoint.strategy.items()
        }
        write_checksummed(self._path(record.round), tensors, about)

    def load(self, lines: Sequence[RoundRecord]) -> Checkpoint | None:
        """Return the newest checkpoint, None if there is none yet.

        Args:
            lines: of rounds.jsonl; those of the checkpoint's own round and later are left out.

        Raises:
            InputRefusedError: if the newest file is damaged, belongs to another run, or lacks its earlier records.
        """
        rounds = self._rounds()
        if not rounds:
            return None
        tensors, about = self._read(rounds[-1], rounds[:-1])
        try:
            self._plan.layout.check(tensors[_PAYLOAD])
            record = RoundRecord.from_json(about["record"])
            earlier = lines[: record.round - 1]
            stopping = about["stopping"]
            best = -math.inf if stopping["best"] is None else float(stopping["best"])
            since = int(stopping["since"])
        except (KeyError, TypeError, ValueError, PayloadMismatchError) as error:
            raise _refuse(self._path(rounds[-1]), f"does not hold a round ({error})", rounds[:-1]) from error
        if [held.round for held in earlier] != list(range(1, record.round)):
            fix = f"lacks some of rounds 1 to {record.round - 1}, which the checkpoint follows; restore the file"
            raise InputRefusedError([Problem("--resume", "rounds.jsonl", fix)])
        state = {name.removeprefix(_STATE): tensor for name, tensor in tensors.items() if name.startswith(_STATE)}
        return Checkpoint(tensors[_PAYLOAD], state, (*earlier, record), (best, since))

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


def _refuse(path: Path, what: str, sound: Sequence[int]) -> InputRefusedError:
    where = f"go on after round {sound[-1]}, the last sound one" if sound else "start again from round 1"
    return InputRefusedError([Problem("--resume", str(path), f"{what}; remove it to {where}")])
