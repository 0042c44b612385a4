"""Protocol values in Flower messages: valid ones pass unchanged, invalid ones are refused with the reason."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, no_object_id_recompute
from hypothesis import given
from hypothesis import strategies as st

from ept_fed.config.experiment import Experiment, TrainingSettings
from ept_fed.flower import records
from ept_fed.flower.messages import (
    decode_introduction,
    decode_reply,
    decode_request,
    encode_proposal,
    encode_reply,
    encode_request,
)
from ept_fed.flower.records import (
    SITE_FAILED,
    SITE_REFUSED,
    encode_frame_record,
    read_frame_record,
)
from ept_fed.flower.transport import copy_over_wire, count_bytes, set_task_identity
from ept_fed.protocol.frame_prefix import PREFIX_BYTES, make_prefix
from ept_fed.protocol.frames import Introduce, Refusal, decode_frame, encode_frame
from ept_fed.protocol.layout import PayloadLayout, PayloadMismatchError
from ept_fed.protocol.messages import (
    EVALUATE_METRICS,
    TRAIN_METRICS,
    Header,
    MessageRefusedError,
    RoundReply,
    RoundRequest,
)
from ept_fed.protocol.proposal import SiteIntroduction, propose
from tests.effort import examples
from tests.frames_by_hand import frame_of, open_frame

LAYOUT = PayloadLayout((("sinks", (3, 5)),))
HEADER = Header(run="r", round=2, backbone_digest="d", layout_hash=LAYOUT.hash)
VECTOR = np.arange(15, dtype=np.float32)
REQUEST = RoundRequest(HEADER, "train", 8, VECTOR, "train", TrainingSettings())
METRICS = {**dict.fromkeys(TRAIN_METRICS, 1.0), "loss": 1.5, "seconds": 2.0}
REPLY = RoundReply(HEADER, "train", VECTOR, 40, METRICS)
REFUSALS = (MessageRefusedError, PayloadMismatchError)


@pytest.fixture(autouse=True)
def _identity() -> None:
    set_task_identity(1)


def request_message(request: RoundRequest = REQUEST) -> Message:
    return Message(encode_request(request), 7, request.phase)


def with_frame(frame: bytes) -> Message:
    return Message(encode_frame_record(frame), reply_to=request_message())


def decode(message: Message) -> RoundReply:
    return decode_reply(copy_over_wire(message), "train", HEADER, LAYOUT)


def test_a_request_arrives_as_it_was_sent() -> None:
    sent = dataclasses.replace(REQUEST, correction=2 * VECTOR)
    received = decode_request(copy_over_wire(request_message(sent)), "train", LAYOUT)
    assert encode_frame(received) == encode_frame(sent)


def test_a_reply_arrives_as_it_was_sent() -> None:
    received = decode(encode_reply(REPLY, request_message()))
    assert np.array_equal(received.payload, VECTOR)
    assert dataclasses.replace(received, payload=VECTOR) == REPLY


def test_an_undefined_metric_arrives_as_nan_and_not_as_absent() -> None:
    metrics = dict.fromkeys(EVALUATE_METRICS, float("nan"))
    message = encode_reply(RoundReply(HEADER, "evaluate", None, 3, metrics), request_message())
    received = decode_reply(copy_over_wire(message), "evaluate", HEADER, LAYOUT)
    assert set(received.metrics) == set(EVALUATE_METRICS)
    assert all(np.isnan(value) for value in received.metrics.values())


@pytest.mark.parametrize("length", [16, 999, 1000, 1001, 3500])
def test_a_frame_of_any_length_is_split_into_records_of_fixed_size(
    monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    monkeypatch.setattr(records, "PART_BYTES", 1000)
    frame = make_prefix(0, length - PREFIX_BYTES) + np.random.default_rng(length).bytes(length - PREFIX_BYTES)
    content = encode_frame_record(frame)
    assert len(content) == math.ceil(length / 1000)
    assert read_frame_record(copy_over_wire(with_frame(frame))) == frame


def test_equal_records_under_many_names_are_refused_before_they_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower sends equal records once, so this message is a thousand times smaller than its content."""
    monkeypatch.setattr(records, "PART_BYTES", 1000)
    frame = make_prefix(0, 999_984) + bytes(984)
    content = RecordDict({str(number): ConfigRecord({"frame": frame}) for number in range(1000)})
    message = copy_over_wire(Message(content, reply_to=request_message()))
    assert len(read_frame_record(message)) == 1_000_000
    with pytest.raises(MessageRefusedError, match="may contain at most 400"):
        read_frame_record(message, numbers=100)
    for short in (make_prefix(0, 984) + bytes(984), make_prefix(0, 2_000_000) + bytes(984)):
        content = RecordDict({str(number): ConfigRecord({"frame": short}) for number in range(1000)})
        with pytest.raises(MessageRefusedError, match="do not fit a frame"):
            read_frame_record(Message(content, reply_to=request_message()))


def test_parts_of_other_sizes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "PART_BYTES", 20)
    frame = make_prefix(0, 24) + bytes(24)
    for parts in ((frame[:10], frame[10:]), (frame[:20], frame[20:], b""), (frame[:19], frame[19:])):
        content = RecordDict({str(place): ConfigRecord({"frame": part}) for place, part in enumerate(parts)})
        with pytest.raises(MessageRefusedError):
            read_frame_record(Message(content, reply_to=request_message()))


def test_records_are_joined_by_number_and_not_by_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(records, "PART_BYTES", 20)
    frame = make_prefix(0, 224) + bytes(range(224))
    content = encode_frame_record(frame)
    turned = RecordDict({name: content[name] for name in reversed(list(content))})
    assert read_frame_record(Message(turned, 1, "train")) == frame


@pytest.mark.parametrize("twice", [False, True], ids=["different parts", "equal parts"])
def test_bytes_are_counted_as_flowers_transport_pushes_them(twice: bool) -> None:
    message = request_message()
    if twice:
        message.content["1"] = message.content["0"]
    with no_object_id_recompute():
        pushed = {identifier: part.deflate() for identifier, part in get_all_nested_objects(message).items()}
    assert count_bytes(message) == sum(map(len, pushed.values()))
    copy = copy_over_wire(message)
    assert get_all_nested_objects(copy).keys() == pushed.keys()
    assert count_bytes(copy) == count_bytes(message)


def test_a_copy_over_the_wire_shares_no_data() -> None:
    message = request_message()
    received = copy_over_wire(message)
    received.content["0"]["frame"] = b"other"
    assert read_frame_record(message) == encode_frame(REQUEST)


@pytest.mark.parametrize("kind", ["request", "reply"])
def test_a_message_is_three_flower_objects(kind: str) -> None:
    """Flower pushes each object by its own request; the message, its content and one record are the minimum."""
    message = request_message() if kind == "request" else encode_reply(REPLY, request_message())
    assert [type(part) for part in get_all_nested_objects(message).values()] == [ConfigRecord, RecordDict, Message]


@pytest.mark.parametrize("floats", [1, 780, 2364, 236_400])
def test_the_envelope_stays_below_two_kilobytes_for_any_payload(floats: int) -> None:
    layout = PayloadLayout((("sinks", (1, floats)),))
    header = Header(run="0" * 16, round=999, backbone_digest="0" * 64, layout_hash=layout.hash)
    metrics = dict.fromkeys(TRAIN_METRICS, 1 / 3)
    reply = RoundReply(header, "train", np.random.default_rng(0).random(floats, np.float32), 10**6, metrics)
    assert 0 < count_bytes(encode_reply(reply, request_message())) - 4 * floats <= 2000


BAD_RECORDS = {
    "no records": RecordDict(),
    "no frame": RecordDict({"0": ConfigRecord({})}),
    "an empty frame": RecordDict({"0": ConfigRecord({"frame": b""})}),
    "text": RecordDict({"0": ConfigRecord({"frame": "EPT1"})}),
    "a list": RecordDict({"0": ConfigRecord({"frame": [encode_frame(REPLY)]})}),
    "another key": RecordDict({"0": ConfigRecord({"bytes": encode_frame(REPLY)})}),
    "something beside it": RecordDict({"0": ConfigRecord({"frame": encode_frame(REPLY), "image": b"x"})}),
    "another name": RecordDict({"frame": ConfigRecord({"frame": encode_frame(REPLY)})}),
    "counted from one": RecordDict({"1": ConfigRecord({"frame": encode_frame(REPLY)})}),
    "a gap": RecordDict({number: ConfigRecord({"frame": encode_frame(REPLY)}) for number in ("0", "2")}),
    "twice": RecordDict({number: ConfigRecord({"frame": encode_frame(REPLY)}) for number in ("0", "1")}),
    "a record of images": RecordDict(
        {"0": ConfigRecord({"frame": encode_frame(REPLY)}), "images": ArrayRecord({"a": Array(VECTOR)})}
    ),
    "an array": RecordDict({"0": ArrayRecord({"frame": Array(VECTOR)})}),
    "a metric": RecordDict({"0": MetricRecord({"frame": 1})}),
}


@pytest.mark.parametrize("content", BAD_RECORDS.values(), ids=BAD_RECORDS)
def test_records_that_are_not_those_of_one_frame_are_refused(content: RecordDict) -> None:
    with pytest.raises(MessageRefusedError):
        decode(Message(content, reply_to=request_message()))


def altered(change: Callable[[dict[str, Any]], Any], body: bytes | None = None) -> bytes:
    """Serialize the valid reply with another head, and with other arrays if `body` is given."""
    document, arrays = open_frame(encode_frame(REPLY))
    change(document)
    return frame_of(document, arrays if body is None else body)


def with_vector(vector: np.ndarray) -> bytes:
    return altered(lambda head: head.update(arrays={"payload": vector.size}), vector.tobytes())


BAD_FRAMES = {
    "no payload": encode_frame(dataclasses.replace(REPLY, payload=None)),
    "no arrays": altered(lambda head: head.pop("arrays")),
    "no metrics": altered(lambda head: head.pop("metrics")),
    "no header": altered(lambda head: head.pop("header")),
    "another array name": altered(lambda head: head.update(arrays={"weights": 15})),
    "two arrays": altered(lambda head: head.update(arrays={"payload": 15, "image": 15}), 2 * VECTOR.tobytes()),
    "a gradient that nobody asked for": encode_frame(dataclasses.replace(REPLY, gradient=VECTOR)),
    "too short": with_vector(VECTOR[:-1]),
    "broadcastable": with_vector(VECTOR[:1]),
    "float64": with_vector(VECTOR.astype(np.float64).view(np.float32)),
    "NaN": with_vector(np.full(15, np.nan, np.float32)),
    "infinity": with_vector(np.full(15, np.inf, np.float32)),
    "a claim that its bytes do not keep": altered(lambda _: None, VECTOR[:-1].tobytes()),
    "a claim of a huge array": altered(lambda head: head.update(arrays={"payload": 9**9})),
    "no bytes": altered(lambda _: None, b""),
    "bytes behind the array": altered(lambda _: None, VECTOR.tobytes() + b"secret"),
    "pickled": b"\x80\x04K\x01.",
    "an evaluate reply": encode_frame(RoundReply(HEADER, "evaluate", None, 3, dict.fromkeys(EVALUATE_METRICS, 1.0))),
    "the request": encode_frame(REQUEST),
    "a refusal": encode_frame(Refusal("no")),
    "metric missing": altered(lambda head: head["metrics"].pop("loss")),
    "extra metric": altered(lambda head: head["metrics"].update(age=71.0)),
    "metric list": altered(lambda head: head["metrics"].update(loss=[1.0])),
    "metric infinite": altered(lambda head: head["metrics"].update(loss=math.inf)),
    "metric not a number": altered(lambda head: head["metrics"].update(loss=math.nan)),
    "no sample count": altered(lambda head: head.pop("examples")),
    "no samples": altered(lambda head: head.update(examples=0)),
    "negative samples": altered(lambda head: head.update(examples=-10)),
    "fractional samples": altered(lambda head: head.update(examples=40.0)),
    "absurdly many samples": altered(lambda head: head.update(examples=10**12)),
    "header of another type": altered(lambda head: head["header"].update(run=1)),
}


@pytest.mark.parametrize("frame", BAD_FRAMES.values(), ids=BAD_FRAMES)
def test_a_malformed_reply_is_refused(frame: bytes) -> None:
    with pytest.raises(REFUSALS):
        decode(with_frame(frame))


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Header)])
def test_a_header_that_differs_is_refused_with_both_values(field: str) -> None:
    value = getattr(HEADER, field)
    other = dataclasses.replace(HEADER, **{field: value + (1 if isinstance(value, int) else "x")})
    message = encode_reply(dataclasses.replace(REPLY, header=other), request_message())
    with pytest.raises(MessageRefusedError, match=f"theirs {getattr(other, field)}, ours {value}"):
        decode(message)


def test_an_error_reply_is_refused_and_leaks_no_private_text() -> None:
    for code, said in ((SITE_REFUSED, "refused: bad\x1b[31m"), (SITE_FAILED, "own log"), (13, "13")):
        message = Message(Error(code=code, reason="bad\x1b[31m/data/patient_007.dcm"), reply_to=request_message())
        with pytest.raises(MessageRefusedError) as refusal:
            decode_reply(message, "train", HEADER, LAYOUT)
        assert "\x1b" not in str(refusal.value)
        assert said.split("\x1b")[0] in str(refusal.value)
    with pytest.raises(MessageRefusedError) as refusal:
        message = Message(Error(code=SITE_FAILED, reason="/data/patient_007.dcm"), reply_to=request_message())
        decode_reply(message, "train", HEADER, LAYOUT)
    assert "patient" not in str(refusal.value)


@examples(75)
@given(position=st.integers(0, 10_000), byte=st.integers(0, 255), cut=st.integers(0, 40))
def test_an_altered_reply_is_refused_or_still_valid(position: int, byte: int, cut: int) -> None:
    """Change one byte or cut the end: the reply is refused, or it gives a finite vector of the right size."""
    frame = bytearray(encode_frame(REPLY))
    frame[position % len(frame)] = byte
    try:
        payload = decode(with_frame(bytes(frame[: len(frame) - cut]))).payload
    except REFUSALS:
        return
    assert cut == 0
    assert payload is not None
    assert payload.shape == (15,)
    assert payload.dtype == np.float32
    assert np.isfinite(payload).all()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("split", "holdout"),
        ("split", 1),
        ("rounds", "8"),
        ("settings", 3),
        ("phase", "evaluate"),
        ("wants_gradient", 1),
        ("header", {}),
        ("arrays", {"correction": 15}),
        ("arrays", {"payload": 14}),
    ],
)
def test_a_malformed_request_is_refused(key: str, value: object) -> None:
    document, body = open_frame(encode_frame(REQUEST))
    with pytest.raises(MessageRefusedError):
        decode_request(with_frame(frame_of({**document, key: value}, body)), "train", LAYOUT)


@pytest.mark.parametrize("vector", [VECTOR[:-1], np.full(15, np.nan, np.float32)], ids=["short", "NaN"])
@pytest.mark.parametrize("name", ["payload", "correction"])
def test_a_request_whose_vectors_do_not_fit_is_refused(name: str, vector: np.ndarray) -> None:
    with pytest.raises(PayloadMismatchError):
        decode_request(request_message(dataclasses.replace(REQUEST, **{name: vector})), "train", LAYOUT)


PROPOSAL = propose(Experiment.model_validate({"data": {"source": "phantoms", "classes": ["a", "b"]}}))
INTRODUCTION = SiteIntroduction("north", "r", PROPOSAL.digest, "d", LAYOUT, VECTOR, 5)


def introduction_message(frame: bytes) -> Message:
    return Message(encode_frame_record(frame), reply_to=Message(encode_proposal("r", PROPOSAL), 7, "query"))


def test_a_proposal_and_its_answer_pass_unchanged() -> None:
    asked = decode_frame(read_frame_record(copy_over_wire(Message(encode_proposal("r", PROPOSAL), 7, "query"))))
    assert asked == Introduce("r", PROPOSAL)
    answered = decode_introduction(copy_over_wire(introduction_message(encode_frame(INTRODUCTION))), "r", PROPOSAL)
    assert encode_frame(answered) == encode_frame(INTRODUCTION)


@pytest.mark.parametrize("frame", [b"", encode_frame(Refusal("no")), encode_frame(INTRODUCTION)[:-1]])
def test_a_frame_that_does_not_answer_the_proposal_is_refused(frame: bytes) -> None:
    with pytest.raises(MessageRefusedError):
        decode_introduction(introduction_message(frame), "r", PROPOSAL)


def test_an_error_is_not_accepted_as_an_introduction() -> None:
    question = Message(encode_proposal("r", PROPOSAL), 7, "query")
    with pytest.raises(MessageRefusedError, match="the site refused: busy"):
        decode_introduction(Message(Error(code=SITE_REFUSED, reason="busy"), reply_to=question), "r", PROPOSAL)


@pytest.mark.parametrize(("code", "said"), [(3, "did not answer in time"), (5, "went offline"), (77, "error 77: odd")])
def test_superlink_errors_are_reported_in_the_consortiums_terms(code: int, said: str) -> None:
    question = Message(RecordDict(), 1, "query")
    with pytest.raises(MessageRefusedError, match=said):
        read_frame_record(Message(Error(code=code, reason="odd"), reply_to=question))
