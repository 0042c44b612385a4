"""The effects of Flower's transport on a message, without a network: identity, size in bytes, serialized copy.

flwr 1.41 has no public interface for any of them, so private names are imported here.
"""

from collections.abc import Iterable, Mapping
from typing import cast

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    _get_computed_object_ids,
    get_object_children_ids_from_object_content,
    get_object_id,
    no_object_id_recompute,
)
from flwr.supercore.task_identity import TaskIdentity

__all__ = ["copy_over_wire", "count_bytes", "name_message", "set_task_identity"]

_Parts = dict[str, tuple[bytes, type[InflatableObject]]]
_WIRE_BYTES = "_ept_fed_wire_bytes"


def set_task_identity(run_id: int) -> None:
    """Register this process as the server of a run; flwr 1.41 cannot create a Message without it."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, 1


def name_message(message: Message, identifier: str) -> None:
    """Set the id of a message, as SuperLink does in transit."""
    message.metadata.__dict__["_message_id"] = identifier


def count_bytes(message: Message) -> int:
    """Return the size of a message in bytes: all objects that Flower's transport would push, including the payload.

    A message from `copy_over_wire` already carries its size.
    """
    counted: int | None = message.__dict__.get(_WIRE_BYTES)
    return _total(_deflate(message)) if counted is None else counted


def copy_over_wire(message: Message) -> Message:
    """Return the copy that the receiver would get: every part is serialized and read back, and no object is shared."""
    received: dict[str, InflatableObject] = {}
    parts = _deflate(message)
    for identifier, (content, kind) in parts.items():
        children = {child: received[child] for child in get_object_children_ids_from_object_content(content)}
        received[identifier] = kind.inflate(content, children)
    copy = cast(Message, received.popitem()[1])
    copy.__dict__[_WIRE_BYTES] = _total(parts)
    return copy


def _total(parts: _Parts) -> int:
    return sum(len(content) for content, _ in parts.values())


def _deflate(message: Message) -> _Parts:
    """Return the bytes and the type of a message and of all its parts, by object id, children first.

    Flower serializes a part once to compute its id, which is part of its parent's bytes, and a second time to get its
    bytes. Here each part is serialized once: its id is computed from these bytes and stored where Flower looks for it.
    """
    parts: _Parts = {}

    def add(part: InflatableObject) -> None:
        for child in _children(part):
            add(child)
        content = part.deflate()
        identifier = get_object_id(content)
        part.__dict__["_object_id"] = identifier
        _get_computed_object_ids().add(identifier)
        parts[identifier] = content, type(part)

    with no_object_id_recompute():
        add(message)
    return parts


def _children(part: InflatableObject) -> Iterable[InflatableObject]:
    """Return the same parts as Flower's `children`, but without their ids, each of which costs a serialization."""
    if type(part) is Message:
        return [part.content] if part.has_content() else []
    if type(part) in {RecordDict, ArrayRecord}:  # isinstance would use their abstract base class, which is slow
        return cast(Mapping[str, InflatableObject], part).values()
    return (part.children or {}).values()
