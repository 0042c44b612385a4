"""Protocol values as Flower records, and back. The only library file that imports flwr.

A message of a round is three records: `arrays` with the array `payload` (and, for strategies that correct the sites,
`correction` down or `gradient` up), `metrics`, and `config` with the header. Whatever comes in is checked claim by
claim before it is decoded: array shapes and dtypes in a record are only the sender's word. A proposal and its answer
are one record with a frame of `ept_fed.protocol.frames`.
"""

import io
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    _get_computed_object_ids,
    get_object_children_ids_from_object_content,
    get_object_id,
    no_object_id_recompute,
)
from flwr.supercore.task_identity import TaskIdentity

from ept_fed.protocol.frames import MOST_ARRAY_BYTES, Introduce, decode_frame, encode_frame
from ept_fed.protocol.layout import PayloadLayout, Vector
from ept_fed.protocol.messages import (
    SPLITS,
    Header,
    MessageRefusedError,
    Phase,
    RoundReply,
    RoundRequest,
    Split,
    clean_text,
    require_type,
)
from ept_fed.protocol.proposal import Proposal, SiteIntroduction

__all__ = [
    "ARRAYS",
    "CONFIG",
    "EXAMPLES_KEY",
    "SITE_AWAY",
    "SITE_FAILED",
    "SITE_REFUSED",
    "copy_over_wire",
    "count_bytes",
    "decode_introduction",
    "decode_reply",
    "decode_request",
    "encode_frame_record",
    "encode_payload",
    "encode_proposal",
    "encode_reply",
    "encode_request_arrays",
    "encode_request_config",
    "name_message",
    "read_frame_record",
    "set_task_identity",
]

ARRAYS, METRICS, CONFIG = "arrays", "metrics", "config"
FRAME = "frame"
PAYLOAD, CORRECTION, GRADIENT = "payload", "correction", "gradient"
EXAMPLES_KEY = "num-examples"
SITE_REFUSED, SITE_FAILED, SITE_AWAY = 101, 102, 103
# Errors that SuperLink makes in a node's name (flwr.common.constant.ErrorCode).
_OF_SUPERLINK = {
    3: "did not answer in time",
    4: "did not answer in time",
    5: "its node went offline: SuperLink has not heard of it for a minute",
}
_Parts = dict[str, tuple[bytes, type[InflatableObject]]]
_WIRE_BYTES = "_ept_fed_wire_bytes"
_HEADER_TYPES: dict[str, type] = {
    "run": str,
    "round": int,
    "backbone_digest": str,
    "layout_hash": str,
    "protocol": int,
    "code": str,
}


def set_task_identity(run_id: int) -> None:
    """Name this process as the server of a run; flwr 1.41 refuses to make a Message without it (a private class)."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, 1


def name_message(message: Message, identifier: str) -> None:
    """Give a message its id, as the SuperLink does on the way; flwr 1.41 has no public way to."""
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


def encode_payload(vector: Vector) -> ArrayRecord:
    """Return a payload vector as the one array of an ArrayRecord."""
    return ArrayRecord({PAYLOAD: Array(np.ascontiguousarray(vector, dtype=np.float32))})


def encode_request_arrays(request: RoundRequest) -> ArrayRecord:
    """Return a request's payload, and its correction if it has one."""
    return _encode_arrays(request.payload, CORRECTION, request.correction)


def encode_request_config(request: RoundRequest) -> ConfigRecord:
    """Return everything of a request but its arrays, as a ConfigRecord."""
    return ConfigRecord(
        {
            **_encode_header(request.header),
            "rounds": request.rounds,
            "split": request.split,
            "settings": request.settings,
            "wants_gradient": request.wants_gradient,
        }
    )


def decode_request(message: Message, phase: Phase, layout: PayloadLayout | None) -> RoundRequest:
    """Read a request at the site.

    Args:
        message: from the server.
        phase: what it asks for.
        layout: of the run's payload; None takes arrays of any one size, for a forwarder: the worker behind it knows
            the layout.

    Raises:
        MessageRefusedError, PayloadMismatchError: for anything that is not a well-formed request.
    """
    content = _content(message)
    config = _read_config(content, (*_HEADER_TYPES, "rounds", "split", "settings", "wants_gradient"))
    split = require_type(config.get("split"), str, "split")
    if split not in SPLITS:
        raise MessageRefusedError(f"'split' is '{split}', not one of {', '.join(SPLITS)}")
    arrays = _only(content.array_records, ARRAYS)
    vectors = _decode_arrays(arrays, layout, (PAYLOAD, CORRECTION) if CORRECTION in arrays else (PAYLOAD,))
    return RoundRequest(
        header=_decode_header(config),
        phase=phase,
        rounds=require_type(config.get("rounds"), int, "rounds"),
        payload=vectors[PAYLOAD],
        split=cast(Split, split),
        settings=require_type(config.get("settings"), str, "settings"),
        correction=vectors.get(CORRECTION),
        wants_gradient=require_type(config.get("wants_gradient"), bool, "wants_gradient"),
    )


def encode_reply(reply: RoundReply, request: Message) -> Message:
    """Return a site's reply as the answer to the request's message."""
    records: dict[str, Any] = {
        METRICS: MetricRecord({EXAMPLES_KEY: reply.examples, **{key: float(v) for key, v in reply.metrics.items()}}),
        CONFIG: ConfigRecord(_encode_header(reply.header)),
    }
    if reply.payload is not None:
        records[ARRAYS] = _encode_arrays(reply.payload, GRADIENT, reply.gradient)
    return Message(RecordDict(records), reply_to=request)


def decode_reply(
    message: Message,
    phase: Phase,
    request: Header,
    layout: PayloadLayout,
    *,
    wants_gradient: bool = False,
    private: bool = False,
    masked: bool = False,
    silent: bool = False,
) -> RoundReply:
    """Read and check a reply at the server; see `RoundReply.check`.

    Raises:
        MessageRefusedError, PayloadMismatchError: for an error reply or anything that does not answer the request.
    """
    if message.has_error():
        raise MessageRefusedError(_explain_error(message.error))
    content = _content(message)
    metrics = _only(content.metric_records, METRICS)
    vectors: dict[str, Vector] = {}
    if phase == "train" and not masked:
        wanted = (PAYLOAD, GRADIENT) if wants_gradient else (PAYLOAD,)
        vectors = _decode_arrays(_only(content.array_records, ARRAYS), layout, wanted)
    elif content.array_records:
        raise MessageRefusedError("an evaluate reply, or one whose update is masked, must not carry a payload")
    reply = RoundReply(
        header=_decode_header(_read_config(content, tuple(_HEADER_TYPES))),
        phase=phase,
        payload=vectors.get(PAYLOAD),
        examples=require_type(metrics.get(EXAMPLES_KEY), int, EXAMPLES_KEY),
        metrics={key: require_type(value, float, key) for key, value in metrics.items() if key != EXAMPLES_KEY},
        gradient=vectors.get(GRADIENT),
    )
    reply.check(request, layout, wants_gradient=wants_gradient, private=private, masked=masked, silent=silent)
    return reply


def encode_frame_record(frame: bytes) -> RecordDict:
    """Return the bytes of a frame as the one record of a message."""
    return RecordDict({CONFIG: ConfigRecord({FRAME: frame})})


def read_frame_record(message: Message) -> bytes:
    """Return the bytes of the frame that a message holds.

    Raises:
        MessageRefusedError: for an error reply, or a message that holds anything else.
    """
    if message.has_error():
        raise MessageRefusedError(_explain_error(message.error))
    content = _content(message)
    if list(content) != [CONFIG]:
        raise MessageRefusedError(f"records are {list(content)[:5]}; exactly ['{CONFIG}'] is expected")
    return cast(bytes, require_type(_read_config(content, (FRAME,))[FRAME], bytes, FRAME))


def encode_proposal(run: str, proposal: Proposal) -> RecordDict:
    """Return the server's question of a run, for a message of type "query"."""
    return encode_frame_record(encode_frame(Introduce(run, proposal)))


def decode_introduction(message: Message, run: str, proposal: Proposal) -> SiteIntroduction:
    """Read and check the answer to a proposal at the server.

    Raises:
        MessageRefusedError, PayloadMismatchError: for an error reply or anything that does not answer the proposal.
    """
    frame = decode_frame(read_frame_record(message))
    if not isinstance(frame, SiteIntroduction):
        raise MessageRefusedError("the answer to a proposal is no introduction")
    frame.check(run, proposal)
    return frame


def _explain_error(error: Error) -> str:
    """Say what an error reply means."""
    reason = clean_text(str(error.reason or ""))
    if error.code == SITE_REFUSED:
        return f"the site refused: {reason}"
    if error.code == SITE_FAILED:
        return "the site failed; its own log says why"
    if error.code == SITE_AWAY:
        return "the site's worker does not answer; the site has to start it"
    return _OF_SUPERLINK.get(error.code) or f"Flower reports error {error.code}: {reason}"


def _content(message: Message) -> RecordDict:
    if not message.has_content():
        raise MessageRefusedError("the message has no content")
    return message.content


def _only(records: Any, name: str) -> Any:
    if list(records) != [name]:
        raise MessageRefusedError(f"records are {list(records)}; exactly ['{name}'] is expected")
    return records[name]


def _encode_header(header: Header) -> dict[str, str | int]:
    return {name: getattr(header, name) for name in _HEADER_TYPES}


def _read_config(content: RecordDict, names: tuple[str, ...]) -> ConfigRecord:
    config: ConfigRecord = _only(content.config_records, CONFIG)
    if set(config) != set(names):
        odd = sorted(repr(name)[:22] for name in set(config) ^ set(names))[:5]
        raise MessageRefusedError(f"config has unknown or missing keys: {', '.join(odd)}")
    return config


def _decode_header(config: ConfigRecord) -> Header:
    values = {name: require_type(config.get(name), kind, name) for name, kind in _HEADER_TYPES.items()}
    return Header(**values)


def _encode_arrays(payload: Vector, name: str, vector: Vector | None) -> ArrayRecord:
    record = encode_payload(payload)
    if vector is not None:
        record[name] = Array(np.ascontiguousarray(vector, dtype=np.float32))
    return record


def _decode_arrays(arrays: ArrayRecord, layout: PayloadLayout | None, names: tuple[str, ...]) -> dict[str, Vector]:
    """Check the claims, then the bytes' size and header, then the content, of exactly these arrays."""
    if set(arrays) != set(names):
        raise MessageRefusedError(f"arrays are {list(arrays)[:5]}; exactly {list(names)} is expected")
    size = _claimed_size(arrays[names[0]]) if layout is None else layout.size
    vectors = {}
    for name in names:
        array = arrays[name]
        if (array.dtype, tuple(array.shape), array.stype) != ("float32", (size,), "numpy.ndarray"):
            raise MessageRefusedError(
                f"{name} claims {array.dtype} {tuple(array.shape)} as {array.stype}; "
                f"expected float32 ({size},) as numpy.ndarray"
            )
        vectors[name] = _read_npy(array.data, size)
        if layout is not None:
            layout.check(vectors[name])
    return vectors


def _claimed_size(array: Array) -> int:
    """Return the number of values that an array claims, if it can be true."""
    bytes_there = len(array.data)
    if len(array.shape) != 1 or not 1 <= array.shape[0] <= bytes_there // 4 <= MOST_ARRAY_BYTES // 4:
        raise MessageRefusedError(f"an array claims the shape {tuple(array.shape)[:3]} and has {bytes_there} bytes")
    return int(array.shape[0])


def _read_npy(data: bytes, size: int) -> Vector:
    """Read the bytes of a little-endian float32 .npy of shape (size,).

    Its header must be, byte for byte, the one that numpy writes for such an array: nothing of the sender's is parsed,
    so no crafted header can ask for memory, for pickle, or for an exception.
    """
    header = _npy_header(size)
    if len(data) != len(header) + 4 * size or not bytes(data).startswith(header):
        raise MessageRefusedError(f"payload's {len(data)} bytes are not a float32 .npy array of shape ({size},)")
    return np.frombuffer(data, dtype="<f4", offset=len(header)).astype(np.float32)


@cache
def _npy_header(size: int) -> bytes:
    stream = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (size,)}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue()
