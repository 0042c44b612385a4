"""Protocol values through Flower messages: what is sound passes unchanged, what is not is refused by name."""

import dataclasses
import io

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, no_object_id_recompute
from hypothesis import given, settings
from hypothesis import strategies as st

from ept_fed.config import Experiment
from ept_fed.flower import (
    CONFIG,
    EXAMPLES_KEY,
    SITE_FAILED,
    SITE_REFUSED,
    copy_over_wire,
    count_bytes,
    decode_introduction,
    decode_reply,
    decode_request,
    encode_frame_record,
    encode_payload,
    encode_proposal,
    encode_reply,
    encode_request_arrays,
    encode_request_config,
    read_frame_record,
    set_task_identity,
)
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

LAYOUT = PayloadLayout((("sinks", (3, 5)),))
HEADER = Header(run="r", round=2, backbone_digest="d", layout_hash=LAYOUT.hash)
VECTOR = np.arange(15, dtype=np.float32)
REQUEST = RoundRequest(HEADER, "train", 8, VECTOR, "train", "{}")
METRICS = {**dict.fromkeys(TRAIN_METRICS, 1.0), "loss": 1.5, "seconds": 2.0}
REPLY = RoundReply(HEADER, "train", VECTOR, 40, METRICS)
REFUSALS = (MessageRefusedError, PayloadMismatchError)


@pytest.fixture(autouse=True)
def _identity() -> None:
    set_task_identity(1)


def request_message(request: RoundRequest = REQUEST) -> Message:
    records = RecordDict({"arrays": encode_payload(request.payload), "config": encode_request_config(request)})
    return Message(records, 7, request.phase)


def reply_message(**records: object) -> Message:
    """A sound reply, with records replaced (or dropped, where None)."""
    sound = encode_reply(REPLY, request_message()).content
    content = RecordDict(
        {**{name: sound[name] for name in sound}, **{k: v for k, v in records.items() if v is not None}}
    )
    for name, record in records.items():
        if record is None:
            del content[name]
    return Message(content, reply_to=request_message())


def decode(message: Message) -> RoundReply:
    return decode_reply(copy_over_wire(message), "train", HEADER, LAYOUT)


def test_a_request_arrives_as_it_was_sent() -> None:
    received = decode_request(copy_over_wire(request_message()), "train", LAYOUT)
    assert np.array_equal(received.payload, VECTOR)
    assert dataclasses.replace(received, payload=VECTOR) == REQUEST


def test_a_reply_arrives_as_it_was_sent() -> None:
    received = decode(reply_message())
    assert np.array_equal(received.payload, VECTOR)
    assert dataclasses.replace(received, payload=VECTOR) == REPLY


def test_an_undefined_metric_arrives_as_nan_and_not_as_absent() -> None:
    metrics = dict.fromkeys(EVALUATE_METRICS, float("nan"))
    message = encode_reply(RoundReply(HEADER, "evaluate", None, 3, metrics), request_message())
    received = decode_reply(copy_over_wire(message), "evaluate", HEADER, LAYOUT)
    assert set(received.metrics) == set(EVALUATE_METRICS)
    assert all(np.isnan(value) for value in received.metrics.values())


@pytest.mark.parametrize("twice", [False, True], ids=["different parts", "equal parts"])
def test_bytes_are_counted_as_flowers_transport_pushes_them(twice: bool) -> None:
    message = request_message()
    if twice:
        message.content["again"] = message.content[CONFIG]
    with no_object_id_recompute():
        pushed = {identifier: part.deflate() for identifier, part in get_all_nested_objects(message).items()}
    assert count_bytes(message) == sum(map(len, pushed.values()))
    copy = copy_over_wire(message)
    assert get_all_nested_objects(copy).keys() == pushed.keys()
    assert count_bytes(copy) == count_bytes(message)


def test_a_copy_over_the_wire_shares_nothing() -> None:
    message = request_message()
    received = copy_over_wire(message)
    received.content["config"]["run"] = "other"
    assert message.content["config"]["run"] == "r"


@pytest.mark.parametrize("floats", [1, 780, 2364, 236_400])
def test_the_envelope_stays_below_two_kilobytes_whatever_the_payload(floats: int) -> None:
    layout = PayloadLayout((("sinks", (1, floats)),))
    header = Header(run="0" * 16, round=999, backbone_digest="0" * 64, layout_hash=layout.hash)
    metrics = dict.fromkeys(TRAIN_METRICS, 1.0)
    reply = RoundReply(header, "train", np.random.default_rng(0).random(floats, np.float32), 10**6, metrics)
    assert 0 < count_bytes(encode_reply(reply, request_message())) - 4 * floats <= 2000


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def arrays_with(data: bytes, shape: tuple[int, ...] = (15,), dtype: str = "float32") -> ArrayRecord:
    return ArrayRecord({"payload": Array(dtype, shape, "numpy.ndarray", data)})


BAD_RECORDS = {
    "no arrays": {"arrays": None},
    "no metrics": {"metrics": None},
    "no header": {"config": None},
    "a second array record": {"more": ArrayRecord({"payload": Array(VECTOR)})},
    "another array name": {"arrays": ArrayRecord({"weights": Array(VECTOR)})},
    "two arrays": {"arrays": ArrayRecord({"payload": Array(VECTOR), "image": Array(VECTOR)})},
    "too short": {"arrays": ArrayRecord({"payload": Array(VECTOR[:-1])})},
    "broadcastable": {"arrays": ArrayRecord({"payload": Array(VECTOR[:1])})},
    "two axes": {"arrays": ArrayRecord({"payload": Array(VECTOR[None])})},
    "float64": {"arrays": ArrayRecord({"payload": Array(VECTOR.astype(np.float64))})},
    "int32": {"arrays": ArrayRecord({"payload": Array(VECTOR.astype(np.int32))})},
    "NaN": {"arrays": ArrayRecord({"payload": Array(np.full(15, np.nan, np.float32))})},
    "infinity": {"arrays": ArrayRecord({"payload": Array(np.full(15, np.inf, np.float32))})},
    "a claim that its bytes do not keep": {"arrays": arrays_with(npy(VECTOR[:-1]))},
    "a dtype that its bytes do not have": {"arrays": arrays_with(npy(VECTOR.astype(np.float64)))},
    "big-endian bytes": {"arrays": arrays_with(npy(VECTOR.astype(">f4")))},
    "a header of a huge array": {"arrays": arrays_with(npy(VECTOR).replace(b"(15,)", b"(9**9,)"))},
    "no bytes": {"arrays": arrays_with(b"")},
    "cut bytes": {"arrays": arrays_with(npy(VECTOR)[:-3])},
    "bytes behind the array": {"arrays": arrays_with(npy(VECTOR) + b"secret")},
    "pickled": {"arrays": arrays_with(b"\x80\x04K\x01.")},
    "metric missing": {"metrics": MetricRecord({EXAMPLES_KEY: 40, **{key: METRICS[key] for key in list(METRICS)[1:]}})},
    "extra metric": {"metrics": MetricRecord({EXAMPLES_KEY: 40, **METRICS, "age": 71.0})},
    "metric list": {"metrics": MetricRecord({EXAMPLES_KEY: 40, **METRICS, "loss": [1.0]})},
    "metric infinite": {"metrics": MetricRecord({EXAMPLES_KEY: 40, **METRICS, "loss": float("inf")})},
    "no sample count": {"metrics": MetricRecord(METRICS)},
    "no samples": {"metrics": MetricRecord({EXAMPLES_KEY: 0, **METRICS})},
    "negative samples": {"metrics": MetricRecord({EXAMPLES_KEY: -10, **METRICS})},
    "fractional samples": {"metrics": MetricRecord({EXAMPLES_KEY: 40.0, **METRICS})},
    "absurdly many samples": {"metrics": MetricRecord({EXAMPLES_KEY: 10**12, **METRICS})},
    "header of another type": {"config": ConfigRecord({"run": 1})},
}


@pytest.mark.parametrize("records", BAD_RECORDS.values(), ids=BAD_RECORDS)
def test_a_malformed_reply_is_refused(records: dict[str, object]) -> None:
    with pytest.raises(REFUSALS):
        decode(reply_message(**records))


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Header)])
def test_a_header_that_differs_is_refused_with_both_sides(field: str) -> None:
    value = getattr(HEADER, field)
    other = dataclasses.replace(HEADER, **{field: value + (1 if isinstance(value, int) else "x")})
    message = encode_reply(dataclasses.replace(REPLY, header=other), request_message())
    with pytest.raises(MessageRefusedError, match=f"theirs {getattr(other, field)}, ours {value}"):
        decode(message)


def test_an_error_reply_is_refused_with_what_may_be_said() -> None:
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


@settings(max_examples=300)
@given(position=st.integers(0, 10_000), byte=st.integers(0, 255), cut=st.integers(0, 40))
def test_no_altered_payload_passes_as_something_it_is_not(position: int, byte: int, cut: int) -> None:
    """Flip one byte or cut the end: either we refuse it, or a finite vector of the right size comes out."""
    data = bytearray(npy(VECTOR))
    data[position % len(data)] = byte
    message = reply_message(arrays=arrays_with(bytes(data[: len(data) - cut])))
    try:
        payload = decode(message).payload
    except REFUSALS:
        return
    assert cut == 0
    assert payload is not None
    assert payload.shape == (15,)
    assert payload.dtype == np.float32
    assert np.isfinite(payload).all()


@pytest.mark.parametrize(
    ("key", "value"), [("split", "holdout"), ("split", 1), ("rounds", "8"), ("settings", 3), ("round", True)]
)
def test_a_malformed_request_is_refused(key: str, value: object) -> None:
    config = encode_request_config(REQUEST)
    config[key] = value
    message = Message(RecordDict({"arrays": encode_payload(VECTOR), "config": config}), 7, "train")
    with pytest.raises(MessageRefusedError, match=key):
        decode_request(message, "train", LAYOUT)


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
def test_what_does_not_answer_a_proposal_is_refused(frame: bytes) -> None:
    with pytest.raises(MessageRefusedError):
        decode_introduction(introduction_message(frame), "r", PROPOSAL)


def test_an_error_is_no_introduction() -> None:
    question = Message(encode_proposal("r", PROPOSAL), 7, "query")
    with pytest.raises(MessageRefusedError, match="the site refused: busy"):
        decode_introduction(Message(Error(code=SITE_REFUSED, reason="busy"), reply_to=question), "r", PROPOSAL)


def test_a_forwarder_reads_arrays_of_any_one_size_and_refuses_impossible_claims() -> None:
    with_correction = dataclasses.replace(REQUEST, correction=VECTOR)
    records = RecordDict({"arrays": encode_request_arrays(with_correction), "config": encode_request_config(REQUEST)})
    read = decode_request(copy_over_wire(Message(records, 7, "train")), "train", None)
    assert read.payload.tobytes() == VECTOR.tobytes()
    assert read.correction is not None
    data = encode_payload(VECTOR)["payload"].data
    for shape in ((10**15,), (), (3, 5), (-1,), (14,)):
        arrays = ArrayRecord({"payload": Array("float32", shape, "numpy.ndarray", data)})
        lying = RecordDict({"arrays": arrays, "config": encode_request_config(REQUEST)})
        with pytest.raises(MessageRefusedError):
            decode_request(Message(lying, 7, "train"), "train", None)


@pytest.mark.parametrize(("code", "said"), [(3, "did not answer in time"), (5, "went offline"), (77, "error 77: odd")])
def test_errors_of_superlink_are_told_in_the_consortiums_words(code: int, said: str) -> None:
    set_task_identity(1)
    question = Message(RecordDict(), 1, "query")
    with pytest.raises(MessageRefusedError, match=said):
        read_frame_record(Message(Error(code=code, reason="odd"), reply_to=question))
