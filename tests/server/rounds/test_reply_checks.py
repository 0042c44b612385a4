"""Admission accepts only valid replies, and raises only its own errors for every other input."""

import dataclasses
import math

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from ept_fed.config.experiment import TrainingSettings
from ept_fed.config.privacy import SitePrivacySettings
from ept_fed.flower.messages import encode_reply, encode_request
from ept_fed.flower.records import encode_frame_record, read_frame_record
from ept_fed.flower.transport import copy_over_wire, set_task_identity
from ept_fed.protocol.frames import encode_frame
from ept_fed.protocol.layout import PayloadLayout, PayloadMismatchError
from ept_fed.protocol.messages import EVALUATE_METRICS, TRAIN_METRICS, MessageRefusedError, RoundReply, RoundRequest
from ept_fed.run_plan.plan import Plan
from server.rounds.reply_checks import admit, find_norm_outliers, refuse_norm_outliers
from tests.effort import examples
from tests.frames_by_hand import frame_of, open_frame

LAYOUT = PayloadLayout((("sinks", (2, 3)),))
PLAN = Plan(
    "r", 0, "digest", LAYOUT, np.zeros(6, np.float32), 2, ("a", "b"), TrainingSettings(), max_examples={"a": 40}
)

BOUNDED = dataclasses.replace(PLAN, norm_bound=10.0)


NOISY = TrainingSettings.model_validate({"privacy": {"clip": 1.0, "noise_multiplier": 4.0}})


def request(*, wants_gradient: bool = False) -> RoundRequest:
    return RoundRequest(PLAN.header(1), "train", 2, PLAN.initial, "train", PLAN.training, wants_gradient=wants_gradient)


def reply(**changes: object) -> RoundReply:
    metrics = dict.fromkeys(TRAIN_METRICS, 1.0)
    whole = RoundReply(PLAN.header(1), "train", np.arange(6, dtype=np.float32), 40, metrics)
    return dataclasses.replace(whole, **changes)


def as_message(answer: RoundReply, asked: RoundRequest) -> Message:
    set_task_identity(1)
    return encode_reply(answer, Message(encode_request(asked), 7, "train"))


def test_a_sound_reply_is_accepted_unchanged() -> None:
    admitted = admit("a", as_message(reply(), request()), request(), PLAN)
    assert np.array_equal(admitted.payload, reply().payload)
    assert admitted.examples == 40


def test_a_site_that_claims_more_images_than_agreed_is_refused() -> None:
    message = as_message(reply(examples=41), request())
    with pytest.raises(MessageRefusedError, match="claims 41 training images; at most 40 are agreed"):
        admit("a", message, request(), PLAN)
    assert admit("b", message, request(), PLAN).examples == 41


@pytest.mark.parametrize("asked", [True, False])
def test_a_gradient_comes_exactly_where_it_was_asked_for(asked: bool) -> None:
    gradient = np.ones(6, np.float32)
    for sent in (True, False):
        message = as_message(reply(gradient=gradient if sent else None), request(wants_gradient=asked))
        if sent == asked:
            admitted = admit("a", message, request(wants_gradient=asked), PLAN)
            assert (admitted.gradient is not None) == asked
        else:
            with pytest.raises(MessageRefusedError, match="if, and only if"):
                admit("a", message, request(wants_gradient=asked), PLAN)


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    message = as_message(reply(gradient=np.full(6, np.nan, np.float32)), request(wants_gradient=True))
    with pytest.raises(PayloadMismatchError, match="not finite"):
        admit("a", message, request(wants_gradient=True), PLAN)


def test_a_site_that_claims_more_steps_than_its_images_allow_is_refused() -> None:
    plan = dataclasses.replace(PLAN, training=TrainingSettings(epochs=3, batch_size=16))
    for steps, possible in ((9, True), (10, False)):
        message = as_message(reply(metrics=dict.fromkeys(TRAIN_METRICS, 1.0) | {"steps": float(steps)}), request())
        if possible:
            assert admit("a", message, request(), plan).metrics["steps"] == steps
        else:
            with pytest.raises(MessageRefusedError, match=r"claims 10 steps on 40 images; .* allow at most 9"):
                admit("a", message, request(), plan)


def test_the_agreed_images_and_steps_bound_no_evaluation() -> None:
    asked = dataclasses.replace(request(), phase="evaluate", split="validation", settings=None)
    seen = RoundReply(PLAN.header(1), "evaluate", None, 41, dict.fromkeys(EVALUATE_METRICS, 1.0))
    assert admit("a", as_message(seen, asked), asked, PLAN).examples == 41


SILENT = SitePrivacySettings.model_validate({"noise": "local", "clip": 1.0, "noise_multiplier": 2.0})
HIDDEN = dict.fromkeys(TRAIN_METRICS, math.nan) | {"steps": 1.0}


@pytest.mark.parametrize(
    ("plan", "settings", "due"),
    [
        (dataclasses.replace(PLAN, secure_sites=("a", "b", "c")), PLAN.training, reply(payload=None)),
        (dataclasses.replace(PLAN, site_privacy=SILENT), PLAN.training, reply(metrics=HIDDEN)),
        (PLAN, NOISY, reply(metrics=dict.fromkeys(TRAIN_METRICS, 1.0) | {"loss": math.nan})),
    ],
    ids=["masked", "silent", "private"],
)
def test_what_stays_at_the_sites_of_a_run_is_not_accepted(
    plan: Plan, settings: TrainingSettings, due: RoundReply
) -> None:
    asked = dataclasses.replace(request(), settings=settings)
    admit("a", as_message(due, asked), asked, plan)
    with pytest.raises(MessageRefusedError):
        admit("a", as_message(reply(), asked), asked, plan)
    with pytest.raises(MessageRefusedError):
        admit("a", as_message(due, request()), request(), PLAN)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.floats(), max_size=2),
    st.builds(dict),
)
SECTIONS = st.sampled_from(["header", "metrics", "arrays", None])
NAMES = st.sampled_from(
    [
        *("run", "round", "backbone_digest", "layout_hash", "protocol", "code", "extra"),
        *("header", "phase", "examples", "metrics", "arrays", "kind", "payload", "gradient", "correction"),
        *TRAIN_METRICS,
    ]
)


@examples(100)
@given(data=st.data())
def test_whatever_is_altered_in_a_reply_it_is_refused_and_nothing_else_raises(data: st.DataObject) -> None:
    asked = request(wants_gradient=data.draw(st.booleans()))
    gradient = np.ones(6, np.float32) if asked.wants_gradient else None
    document, body = open_frame(encode_frame(reply(gradient=gradient)))
    for _ in range(data.draw(st.integers(1, 3))):
        section = data.draw(SECTIONS)
        place = document if section is None else document.get(section)
        change = data.draw(st.sampled_from(["set", "set one that is there", "lose", "rename", "body"]))
        if change == "body":
            start = data.draw(st.integers(0, len(body)))
            body = body[:start] + data.draw(st.binary(max_size=5)) + body[start + data.draw(st.integers(0, 5)) :]
        elif isinstance(place, dict) and change == "set":
            place[data.draw(NAMES)] = data.draw(VALUES)
        elif isinstance(place, dict) and place:
            key = data.draw(st.sampled_from(sorted(place)))
            if change == "set one that is there":
                place[key] = data.draw(VALUES)
            else:
                value = place.pop(key)
                if change == "rename":
                    place[f"{key}x"] = value
    frame = frame_of(document, body)
    answer = Message(encode_frame_record(frame), reply_to=Message(encode_request(asked), 7, "train"))
    try:
        admitted = admit("a", copy_over_wire(answer), asked, PLAN)
    except (MessageRefusedError, PayloadMismatchError):
        return
    # An accepted reply is valid: only the site's own numbers may differ, and it contains nothing else.
    admitted.check(asked.header, LAYOUT, wants_gradient=asked.wants_gradient)
    assert 1 <= admitted.examples <= 40
    assert encode_frame(admitted) == frame


@examples(50)
@given(data=st.data())
def test_whatever_records_surround_a_reply_it_is_refused_and_nothing_else_raises(data: st.DataObject) -> None:
    frame = encode_frame(reply())
    content = RecordDict()
    for name in data.draw(st.lists(st.sampled_from(["0", "1", "2", "00", "frame", "", "images"]), max_size=3)):
        value = data.draw(st.sampled_from([frame, frame[:50], frame[50:], b"", "text", 1, [frame]]))
        key = data.draw(st.sampled_from(["frame", "frame", "image"]))
        kinds = [ConfigRecord({key: value}), MetricRecord({key: 1}), ArrayRecord({key: Array(np.zeros(3))})]
        content[name] = data.draw(st.sampled_from([kinds[0], *kinds]))
    answer = Message(content, reply_to=as_message(reply(), request()))
    try:
        admitted = admit("a", copy_over_wire(answer), request(), PLAN)
    except MessageRefusedError:
        return
    assert encode_frame(admitted) == frame == read_frame_record(answer)


@given(code=st.integers(-(2**31), 2**31 - 1), reason=st.one_of(st.none(), st.text(max_size=500)))
def test_no_error_reply_raises_or_brings_control_characters(code: int, reason: str | None) -> None:
    set_task_identity(1)
    asked = as_message(reply(), request())
    message = Message(Error(code=code, reason=reason), reply_to=asked)
    with pytest.raises(MessageRefusedError) as refusal:
        admit("a", message, request(), PLAN)
    assert str(refusal.value).isprintable()


def replies(*lengths: float, gradient: float | None = None) -> list[tuple[str, RoundReply]]:
    unit = np.array([1, 0, 0, 0, 0, 0], np.float32)
    own = None if gradient is None else unit
    made = [(f"s{i}", reply(payload=np.float32(length) * unit, gradient=own)) for i, length in enumerate(lengths)]
    if gradient is not None:
        made[-1] = (made[-1][0], reply(payload=unit, gradient=np.float32(gradient) * unit))
    return made


def test_an_update_far_longer_than_the_median_is_refused_by_name_and_length() -> None:
    kept, refused = refuse_norm_outliers(PLAN.initial, replies(1, 2, 3, 50), BOUNDED)
    assert [site for site, _ in kept] == ["s0", "s1", "s2"]
    assert [refusal.site for refusal in refused] == ["s3"]
    assert refused[0].reason == "its update has norm 50, above 10 times the round's median 2.5"


def test_a_gradient_far_longer_than_the_median_is_refused_too() -> None:
    kept, refused = refuse_norm_outliers(PLAN.initial, replies(1, 1, 1, 1, gradient=100), BOUNDED)
    assert len(kept) == 3
    assert refused[0].reason.startswith("its gradient has norm 100")


def test_norms_are_those_of_the_trained_numbers_since_the_start_and_the_bound_itself_is_allowed() -> None:
    layout = PayloadLayout((("sinks", (2, 3)), ("statistics.shares", (2,))))
    start = np.full(8, 100, np.float32)
    sent = []
    for site, length, share in (("a", 1, 0), ("b", 1, 0), ("c", 1, 1e6), ("d", 10, 0), ("e", 11, 0)):
        step = np.zeros(8, np.float32)
        step[0], step[-1] = length, share
        sent.append((site, reply(payload=start + step)))
    kept, refused = refuse_norm_outliers(start, sent, dataclasses.replace(BOUNDED, layout=layout))
    assert ([site for site, _ in kept], [refusal.site for refusal in refused]) == (["a", "b", "c", "d"], ["e"])


@pytest.mark.parametrize("lengths", [(1, 1000), (0, 0, 5), (3,), ()])
def test_where_the_median_says_nothing_nobody_is_refused(lengths: tuple[float, ...]) -> None:
    kept, refused = refuse_norm_outliers(PLAN.initial, replies(*lengths), BOUNDED)
    assert len(kept) == len(lengths)
    assert not refused
    assert not find_norm_outliers({str(place): np.array([float(length)]) for place, length in enumerate(lengths)}, 1.1)


def test_without_a_bound_all_are_kept() -> None:
    assert len(refuse_norm_outliers(PLAN.initial, replies(1, 1, 1, 1e9), PLAN)[0]) == 4


@given(
    lengths=st.lists(st.floats(0, 1e6), min_size=3, max_size=9),
    bound=st.floats(1, 100),
)
def test_norm_outliers_are_at_most_half_of_the_sites(lengths: list[float], bound: float) -> None:
    vectors = {f"s{i}": np.array([length]) for i, length in enumerate(lengths)}
    assert len(find_norm_outliers(vectors, bound)) <= len(lengths) / 2


@pytest.mark.parametrize("unit", [1e-30, 1.0, 1e30])
def test_norm_outliers_are_the_same_in_any_unit(unit: float) -> None:
    vectors = {name: np.array([unit * length, 0.0]) for name, length in (("a", 1), ("b", 2), ("c", 50))}
    assert list(find_norm_outliers(vectors, 10.0)) == ["c"]
