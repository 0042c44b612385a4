"""What Flower's transport does to a message, without the transport: its identity, its bytes, its way over a wire.

flwr 1.41 has no public way to any of it.
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
    """Name this process as the server of a run; flwr 1.41 refuses to make a Message without it."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, 1


def name_message(message: Message, identifier: str) -> None:
    """Give a message its id, as the SuperLink does on the way."""
    message.metadata.__dict__["_message_id"] = identifier


def count_bytes(message: Message) -> int:
    """Return the serialised bytes of a message: every object that Flower's transport would push, payload included.

    What came through `copy_over_wire` was counted on the way.
    """
    counted: int | None = message.__dict__.get(_WIRE_BYTES)
    return _total(_deflate(message)) if counted is None else counted


def copy_over_wire(message: Message) -> Message:
    """Return what the other side would receive: every part serialised and read back, nothing shared."""
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
    """Return a message and all its parts as bytes, with their kind, by object id, children first.

    Flower serialises a part once for its id, which its parent's bytes hold, and again for its bytes. Here the id is
    taken from the bytes, and left where Flower looks for it.
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
    """Return what Flower's `children` does, but without the ids, each of which costs a serialisation."""
    if type(part) is Message:
        return [part.content] if part.has_content() else []
    if type(part) in {RecordDict, ArrayRecord}:  # isinstance would ask their abstract base, slowly
        return cast(Mapping[str, InflatableObject], part).values()
    return (part.children or {}).values()
