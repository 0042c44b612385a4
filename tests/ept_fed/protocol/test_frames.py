"""Frames: each value has one serialization, and all other bytes are refused with one kind of error."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ept_fed.config.experiment import Experiment, TrainingSettings
from ept_fed.protocol.frame_prefix import (
    _MAGIC,
    _PREFIX,
    MAX_ARRAY_BYTES,
    MAX_HEAD_BYTES,
    PREFIX_BYTES,
    is_refusal,
    make_prefix,
    read_lengths,
    read_prefix,
)
from ept_fed.protocol.frames import Frame, Introduce, Refusal, decode_frame, encode_frame, kind_of
from ept_fed.protocol.layout import PayloadLayout
from ept_fed.protocol.messages import Header, MessageRefusedError, RoundReply, RoundRequest, metric_keys
from ept_fed.protocol.proposal import PlanIntroduction, SiteIntroduction, propose
from ept_fed.protocol.stage_messages import StageReply, StageRequest
from tests.frames_by_hand import frame_of, head_of, open_frame

LAYOUT = PayloadLayout((("sinks", (2, 3)),), ("layers 0, 1",))
PROPOSAL = propose(Experiment.model_validate({"data": {"source": "phantoms", "classes": ["ä", "b"]}}))
HEADER = Header("run", 1, "backbone", LAYOUT.hash)
PAYLOAD = np.arange(6, dtype=np.float32) * np.float32(0.1)
METRICS = {**dict.fromkeys(metric_keys("train"), 0.1), "validation_auc": math.nan}
FRAMES: list[Frame] = [
    Introduce("run", PROPOSAL),
    RoundRequest(HEADER, "train", 3, PAYLOAD, "train", TrainingSettings(), PAYLOAD, True),
    RoundRequest(HEADER, "evaluate", 3, PAYLOAD, "test"),
    SiteIntroduction("north", "run", PROPOSAL.digest, "backbone", LAYOUT, PAYLOAD, 5),
    PlanIntroduction("north", '{"rounds":3}', PAYLOAD),
    RoundReply(HEADER, "train", PAYLOAD, 5, METRICS, PAYLOAD),
    RoundReply(HEADER, "evaluate", None, 0, dict.fromkeys(metric_keys("evaluate"), math.nan)),
    StageRequest(HEADER, "shares", b"\x00keys"),
    StageReply(HEADER, "unmasking", b""),
    Refusal("the images are gone", failed=True),
]


@pytest.mark.parametrize("frame", FRAMES, ids=kind_of)
def test_a_frame_comes_back_bit_for_bit(frame: Frame) -> None:
    content = encode_frame(frame)
    back = decode_frame(content)
    assert type(back) is type(frame)
    assert encode_frame(back) == content
    assert getattr(back, "content", None) == getattr(frame, "content", None)
    for name in ("payload", "correction", "gradient", "initial"):
        sent, received = getattr(frame, name, None), getattr(back, name, None)
        assert (sent is None) == (received is None)
        if sent is not None:
            assert received.dtype == np.float32
            assert received.tobytes() == sent.tobytes()


@pytest.mark.parametrize("vector", [np.repeat(PAYLOAD, 2)[::2], PAYLOAD.astype(np.float64), PAYLOAD.astype(">f4")])
def test_a_vector_is_sent_as_float32_however_it_lies_in_memory(vector: Any) -> None:
    sent = encode_frame(PlanIntroduction("north", "{}", vector))
    assert sent == encode_frame(PlanIntroduction("north", "{}", PAYLOAD))


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_with_one_kind_of_error(content: bytes) -> None:
    with pytest.raises(MessageRefusedError):
        decode_frame(content)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.data())
def test_an_altered_frame_is_refused_or_serializes_to_the_same_bytes(data: st.DataObject) -> None:
    content = bytearray(encode_frame(data.draw(st.sampled_from(FRAMES))))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    read_or_refuse(bytes(content))


@given(st.data())
def test_a_head_with_any_field_replaced_is_refused_or_serializes_to_the_same_bytes(data: st.DataObject) -> None:
    frame = encode_frame(data.draw(st.sampled_from(FRAMES)))
    head = head_of(frame)
    node, key = head, data.draw(st.sampled_from(sorted(head)))
    while isinstance(node[key], dict) and node[key] and data.draw(st.booleans()):
        node = node[key]
        key = data.draw(st.sampled_from(sorted(node)))
    node[key] = data.draw(JSON)
    length, _ = read_prefix(frame[:PREFIX_BYTES])
    try:
        read_or_refuse(frame_of(head, frame[PREFIX_BYTES + length :]))
    except UnicodeEncodeError:
        return  # hypothesis drew a lone surrogate, which UTF-8 cannot encode


def read_or_refuse(content: bytes) -> None:
    try:
        frame = decode_frame(content)
    except MessageRefusedError:
        return
    assert encode_frame(frame) == content


def set_field(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda head: head.__setitem__(name, value)


@pytest.mark.parametrize(
    "change",
    [
        set_field("kind", "train"),
        set_field("extra", 1),
        set_field("rounds", "3"),
        set_field("rounds", 3.0),
        set_field("arrays", {"payload": 5}),
        set_field("arrays", {"payload": 7}),
        set_field("arrays", {"payload": -6}),
        set_field("arrays", {"payload": True}),
        set_field("arrays", {"initial": 6}),
        set_field("arrays", {}),
        set_field("wants_gradient", 0),
        lambda head: head.pop("split"),
        lambda head: head["header"].pop("code"),
        lambda head: head["header"].__setitem__("extra", 1),
    ],
)
def test_a_head_with_wrong_missing_or_extra_fields_is_refused(change: Callable[[dict[str, Any]], None]) -> None:
    frame = encode_frame(FRAMES[2])
    head = head_of(frame)
    change(head)
    with pytest.raises(MessageRefusedError):
        decode_frame(frame_of(head, PAYLOAD.tobytes()))


@pytest.mark.parametrize("changes", [{"epochs": 10_000}, {"exfiltrate": True}, {"epochs": "2"}, {"optimizer": None}])
def test_training_settings_that_are_not_complete_and_valid_are_refused(changes: dict[str, Any]) -> None:
    head, body = open_frame(encode_frame(FRAMES[1]))
    for settings in ("{}", {}, head["settings"] | changes):
        with pytest.raises(MessageRefusedError):
            decode_frame(frame_of(head | {"settings": settings}, body))


def test_the_kind_of_a_frame_is_its_phase_or_stage_in_a_round() -> None:
    assert [kind_of(frame) for frame in FRAMES] == [
        *("introduce", "train", "evaluate", "introduction", "plan introduction", "train", "evaluate"),
        *("shares", "unmasking", "refusal"),
    ]


def test_a_duplicate_key_is_refused() -> None:
    head = b'{"kind":"refusal","arrays":{},"reason":"a","reason":"b","failed":false}'
    with pytest.raises(MessageRefusedError, match="not serialized"):
        decode_frame(_PREFIX.pack(_MAGIC, len(head), 0) + head)


def test_a_deeply_nested_head_is_refused() -> None:
    head = b"[" * 100_000
    with pytest.raises(MessageRefusedError):
        decode_frame(_PREFIX.pack(_MAGIC, len(head), 0) + head)


@pytest.mark.parametrize("lengths", [(MAX_HEAD_BYTES + 1, 0), (0, MAX_ARRAY_BYTES + 1), (2**32 - 1, 2**64 - 1)])
def test_lengths_beyond_the_bounds_are_refused_before_anything_is_allocated(lengths: tuple[int, int]) -> None:
    with pytest.raises(MessageRefusedError, match="the maximum is"):
        read_prefix(_PREFIX.pack(_MAGIC, *lengths))


def test_the_largest_lengths_are_allowed() -> None:
    assert read_prefix(make_prefix(MAX_HEAD_BYTES, MAX_ARRAY_BYTES)) == (MAX_HEAD_BYTES, MAX_ARRAY_BYTES)


@pytest.mark.parametrize("lengths", [{}, {"content": 4}, {"content": 6}, {"content": -5}, {"content": 5, "payload": 0}])
def test_the_bytes_of_a_stage_are_those_that_its_head_states(lengths: dict[str, int]) -> None:
    frame = encode_frame(StageRequest(HEADER, "shares", b"\x00keys"))
    head = head_of(frame)
    assert decode_frame(frame_of(head, b"other")) == StageRequest(HEADER, "shares", b"other")
    with pytest.raises(MessageRefusedError):
        decode_frame(frame_of({**head, "arrays": lengths}, b"other"))


def test_an_infinite_number_cannot_be_sent() -> None:
    with pytest.raises(MessageRefusedError):
        encode_frame(RoundReply(HEADER, "evaluate", None, 1, {"loss": math.inf}))


@pytest.mark.parametrize("frame", FRAMES, ids=kind_of)
def test_a_refusal_is_recognised_without_being_decoded(frame: Frame) -> None:
    assert is_refusal(encode_frame(frame)) == isinstance(frame, Refusal)


@pytest.mark.parametrize("cut", [0, 3, PREFIX_BYTES, -1])
def test_a_cut_or_extended_frame_is_refused_by_its_length(cut: int) -> None:
    frame = encode_frame(FRAMES[0])
    assert PREFIX_BYTES + sum(read_lengths(frame)) == len(frame)
    for content in (frame[:cut], frame + b"x"):
        with pytest.raises(MessageRefusedError):
            read_lengths(content)
    with pytest.raises(MessageRefusedError, match="the maximum is"):
        make_prefix(0, MAX_ARRAY_BYTES + 1)
