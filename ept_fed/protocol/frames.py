"""Frames: the messages between server and site as bytes, end to end.

A frame is a prefix (`ept_fed.protocol.frame_prefix`), a JSON head, and float32 arrays or plain bytes. Every value has
exactly one form as bytes: a head that differs from the output of `encode_frame` is refused. So no key can be missing,
extra or repeated, and no number can arrive as text. Nothing is unpickled.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias, get_type_hints

import numpy as np
from pydantic import TypeAdapter

from ept_fed.config.experiment import TrainingSettings
from ept_fed.protocol.frame_prefix import PREFIX_BYTES, make_prefix, read_lengths
from ept_fed.protocol.layout import Vector
from ept_fed.protocol.messages import MessageRefusedError, RoundReply, RoundRequest
from ept_fed.protocol.proposal import PlanIntroduction, Proposal, SiteIntroduction
from ept_fed.protocol.stage_messages import StageReply, StageRequest

__all__ = ["Frame", "Introduce", "Refusal", "decode_frame", "encode_frame", "kind_of"]


@dataclass(frozen=True)
class Introduce:
    """The server's proposal of a run, with a request for the site's introduction."""

    run: str
    proposal: Proposal


@dataclass(frozen=True)
class Refusal:
    """The worker's refusal of a request.

    Attributes:
        reason: a sentence that may leave the site.
        failed: whether the worker failed, instead of deciding to refuse.
    """

    reason: str
    failed: bool = False


Frame: TypeAlias = (
    Introduce | RoundRequest | StageRequest | SiteIntroduction | PlanIntroduction | RoundReply | StageReply | Refusal
)
_KINDS: Mapping[str, type] = {
    "introduce": Introduce,
    "request": RoundRequest,
    "stage": StageRequest,
    "introduction": SiteIntroduction,
    "plan introduction": PlanIntroduction,
    "reply": RoundReply,
    "stage reply": StageReply,
    "refusal": Refusal,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def kind_of(frame: Frame) -> str:
    """Return the name of a frame in logs: its phase or stage if it belongs to a round, otherwise its kind."""
    if isinstance(frame, StageRequest | StageReply):
        return frame.stage
    return frame.phase if isinstance(frame, RoundRequest | RoundReply) else _NAMES[type(frame)]


def encode_frame(frame: Frame) -> bytes:
    """Return the bytes of a frame.

    Raises:
        MessageRefusedError: if it is too large for a frame, or contains an infinite number.
    """
    kind: type = type(frame)
    parts = {name: getattr(frame, name) for name in _part_names(kind) if getattr(frame, name) is not None}
    head = _serialize(frame, {name: len(part) for name, part in parts.items()})
    body = b"".join(
        part if isinstance(part, bytes) else np.ascontiguousarray(part, dtype="<f4").tobytes()
        for part in parts.values()
    )
    return make_prefix(len(head), len(body)) + head + body


def decode_frame(content: bytes) -> Frame:
    """Return the frame of these bytes.

    The layouts of arrays are not checked: the receiver checks them, because it has the expected layout.

    Raises:
        MessageRefusedError: for any bytes that `encode_frame` does not return; the text quotes nothing of them.
    """
    head, _ = read_lengths(content)
    serialized = content[PREFIX_BYTES : PREFIX_BYTES + head]
    try:
        document = json.loads(serialized)
        kind, sizes = _KINDS[document.pop("kind")], document.pop("arrays")
        values = {**_read_fields(kind, document), **_read_parts(kind, sizes, content[PREFIX_BYTES + head :])}
        frame: Frame = kind(**values)
        faithful = _serialize(frame, sizes) == serialized
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise MessageRefusedError(f"a frame cannot be read ({type(error).__name__})") from error
    if not faithful:
        raise MessageRefusedError("a frame's head is not serialized as in this version")
    return frame


def _serialize(frame: Frame, sizes: Mapping[str, int]) -> bytes:
    kind: type = type(frame)
    fields = {name: adapter.dump_python(getattr(frame, name), mode="json") for name, adapter in _fields(kind).items()}
    if isinstance(frame, RoundReply):
        fields["metrics"] = {name: None if math.isnan(value) else value for name, value in frame.metrics.items()}
    document = {"kind": _NAMES[kind], "arrays": dict(sizes), **fields}
    try:
        return json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise MessageRefusedError("a frame contains a number or a text that JSON cannot represent") from error


def _read_fields(kind: type, document: dict[str, Any]) -> dict[str, Any]:
    if kind is RoundReply:
        document["metrics"] = {
            name: math.nan if value is None else value for name, value in document["metrics"].items()
        }
    return {name: adapter.validate_python(document[name]) for name, adapter in _fields(kind).items()}


def _read_parts(kind: type, sizes: Mapping[str, int], body: bytes) -> dict[str, Vector | bytes | None]:
    parts: dict[str, Vector | bytes | None] = dict.fromkeys(_part_names(kind))
    start = 0
    for name, size in sizes.items():
        width = 1 if _hints(kind).get(name) is bytes else 4
        if name not in parts or type(size) is not int or not 0 <= width * size <= len(body) - start:
            raise ValueError("the parts are not those of this kind of frame")
        if width == 1:
            parts[name] = body[start : start + size]
        else:
            parts[name] = np.frombuffer(body, dtype="<f4", count=size, offset=start).astype(np.float32)
        start += width * size
    if start != len(body):
        raise ValueError("bytes are left over")
    missing = [name for name in _needed_parts(kind) if parts[name] is None]
    if missing:
        raise ValueError("a part is missing")
    return parts


@cache
def _hints(kind: type) -> dict[str, Any]:
    # messages.py names this class without importing it.
    hints = get_type_hints(kind, localns={TrainingSettings.__name__: TrainingSettings})
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


@cache
def _fields(kind: type) -> dict[str, TypeAdapter[Any]]:
    parts = _part_names(kind)
    return {name: TypeAdapter(hint) for name, hint in _hints(kind).items() if name not in parts}


@cache
def _part_names(kind: type) -> tuple[str, ...]:
    return tuple(name for name, hint in _hints(kind).items() if hint in (Vector, Vector | None, bytes))


@cache
def _needed_parts(kind: type) -> tuple[str, ...]:
    return tuple(name for name, hint in _hints(kind).items() if hint in (Vector, bytes))
