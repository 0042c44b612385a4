"""Files that a site keeps of a run besides its states, for its own report on the run.

state/<run>/received.safetensors   the payload of the last accepted request, with phase and round of the request
state/<run>/answers.jsonl          a line per answer: its metrics, and the number of bytes received and sent

Neither file is signed: everybody who can write to the folder can change them.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from ept_fed.config.base import Settings
from ept_fed.protocol.layout import Vector
from ept_fed.protocol.messages import Phase, RoundRequest
from ept_fed.protocol.stage_messages import Stage
from ept_fed.storage.checkpoint_file import DamagedCheckpointError, read_checksummed, write_checksummed
from ept_fed.storage.files import append_json_line

__all__ = ["Answer", "Received", "RunRecord"]

AnswerKind = Literal["introduction", "train", "evaluate"] | Stage
_SCHEMA, _RECEIVED_SCHEMA = 1, 2
_PAYLOAD = "payload"


@dataclass(frozen=True)
class Received:
    """The last payload that the site accepted in a run.

    Attributes:
        payload: (layout.size,) float32.
        phase: phase of its request.
        round: round of its request.
        prompts_of: the round that produced this payload.
        chosen: whether the server has chosen this round, so that the run is over.
        layout_hash: hash of the payload's layout.
        backbone_digest: digest of the site's backbone at that time.
        data_digest: digest of the site's images at that time, see `PreparedData.digest`.
    """

    payload: Vector
    phase: Phase
    round: int
    prompts_of: int
    chosen: bool
    layout_hash: str
    backbone_digest: str
    data_digest: str


@dataclass(frozen=True)
class Answer:
    """One answer that passed the gate, and the sizes of the frames in and out; metrics as in `RoundReply`."""

    kind: AnswerKind
    bytes_in: int
    bytes_out: int
    round: int | None = None
    split: str | None = None
    examples: int = 0
    metrics: Mapping[str, float] | None = None


class _About(Settings):
    """The metadata that is stored with a payload."""

    phase: Phase
    round: int
    prompts_of: int
    chosen: bool
    layout_hash: str
    backbone_digest: str
    data_digest: str


_ANSWER: TypeAdapter[Answer] = TypeAdapter(Answer)
_KEYS = {"schema", *Answer.__dataclass_fields__}


class RunRecord:
    """Reads and writes the two files of one run; the folder exists once the run was agreed to."""

    def __init__(self, folder: Path, *, run: str, site: str) -> None:
        """Take the run's folder; a payload of another run or site is refused."""
        self._received, self._answers = folder / "received.safetensors", folder / "answers.jsonl"
        self._identity = {"schema": _RECEIVED_SCHEMA, "run": run, "site": site}

    def accept(self, request: RoundRequest, data_digest: str) -> None:
        """Store a request's payload instead of the one before.

        A repeated evaluate request for an earlier round is ignored, because its payload is older, unless the server has
        chosen that round. A train request is always stored, because its round is trained again.
        """
        if request.phase == "evaluate" and not request.best_round and self._is_behind(request):
            return
        header = request.header
        about = {
            **self._identity,
            "phase": request.phase,
            "round": header.round,
            "prompts_of": request.payload_round,
            "chosen": request.phase == "evaluate" and request.best_round > 0,
            "layout_hash": header.layout_hash,
            "backbone_digest": header.backbone_digest,
            "data_digest": data_digest,
        }
        write_checksummed(self._received, {_PAYLOAD: request.payload}, about)

    def _is_behind(self, request: RoundRequest) -> bool:
        try:
            held = self.read_received()
        except DamagedCheckpointError:
            return False
        return held is not None and request.header.round < held.prompts_of

    def read_received(self) -> Received | None:
        """Return the last payload; None if none was accepted yet.

        Raises:
            DamagedCheckpointError: if the file is damaged, or of another run or site.
        """
        if not self._received.exists():
            return None
        tensors, about = read_checksummed(self._received)
        differing = [key for key, value in self._identity.items() if about.pop(key, None) != value]
        if differing:
            fix = f"its {', '.join(differing)} differ from this run's"
            raise DamagedCheckpointError(f"{self._received} belongs elsewhere: {fix}")
        try:
            held = _About.model_validate(about, strict=True)
            return Received(payload=tensors[_PAYLOAD], **held.model_dump())
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedCheckpointError(f"{self._received} does not contain a valid payload") from error

    def note(self, answer: Answer) -> None:
        """Append an answer's line."""
        append_json_line(self._answers, {"schema": _SCHEMA, **asdict(answer)})

    def read_answers(self) -> tuple[tuple[Answer, ...], int]:
        """Return the answers in their order, and the number of unreadable lines; a line without a line end is ignored.

        Unreadable lines are skipped, so that a line that was cut short by a full disk does not prevent the site's
        report.
        """
        if not self._answers.exists():
            return (), 0
        lines = self._answers.read_bytes().split(b"\n")[:-1]
        read = [_parse(line) for line in lines]
        answers = tuple(answer for answer in read if answer is not None)
        return answers, len(lines) - len(answers)


def _parse(line: bytes) -> Answer | None:
    try:
        document: Any = json.loads(line)
        if not isinstance(document, dict) or set(document) != _KEYS or document.pop("schema") != _SCHEMA:
            return None
        if isinstance(metrics := document["metrics"], dict):
            document["metrics"] = {key: math.nan if value is None else value for key, value in metrics.items()}
        return _ANSWER.validate_json(json.dumps(document), strict=True)
    except (ValueError, RecursionError):
        return None
