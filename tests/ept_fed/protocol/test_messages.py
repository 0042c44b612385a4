"""Replies of a round: each rule of `RoundReply.check`, at its bounds, and the text that may be logged."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ept_fed.config.experiment import TrainingSettings
from ept_fed.protocol.layout import PayloadLayout, PayloadMismatchError
from ept_fed.protocol.messages import (
    EVALUATE_METRICS,
    TRAIN_METRICS,
    Header,
    MessageRefusedError,
    RoundReply,
    RoundRequest,
    clean_text,
    require_type,
)

LAYOUT = PayloadLayout((("sinks", (2, 3)),))
WITH_MEANS = PayloadLayout((("sinks", (2, 3)), ("statistics.shares", (2,))))
HEADER = Header("run", 1, "backbone", LAYOUT.hash)
VECTOR = np.ones(6, np.float32)
TRAINED = RoundReply(HEADER, "train", VECTOR, 5, dict.fromkeys(TRAIN_METRICS, 1.0))
EVALUATED = RoundReply(HEADER, "evaluate", None, 5, dict.fromkeys(EVALUATE_METRICS, 1.0))


def telling(reply: RoundReply, **metrics: float) -> RoundReply:
    return dataclasses.replace(reply, metrics={**reply.metrics, **metrics})


def silent(reply: RoundReply, *told: str) -> RoundReply:
    return telling(reply, **{name: math.nan for name in reply.metrics if name not in told})


MASKED = dataclasses.replace(TRAINED, payload=None)
TAUGHT = dataclasses.replace(TRAINED, gradient=VECTOR)


@pytest.mark.parametrize(
    ("reply", "about"),
    [
        (TRAINED, {}),
        (EVALUATED, {}),
        (MASKED, {"masked": True}),
        (TAUGHT, {"wants_gradient": True}),
        (telling(TRAINED, loss=math.nan), {"private": True}),
        (silent(TRAINED, "steps"), {"silent": True}),
        (silent(TRAINED, "steps", "loss"), {}),
        (silent(EVALUATED), {}),
        (silent(EVALUATED), {"silent": True}),
        (dataclasses.replace(EVALUATED, examples=0), {}),
        (dataclasses.replace(TRAINED, examples=1), {}),
        (dataclasses.replace(TRAINED, examples=10**9), {}),
        (telling(TRAINED, validation_auc=0.0, validation_accuracy=1.0, loss=0.0, validation_classes_present=0.0), {}),
        (telling(TRAINED, loss=1e300, seconds=0.5), {}),
    ],
)
def test_a_reply_that_answers_its_request_is_accepted(reply: RoundReply, about: dict[str, bool]) -> None:
    reply.check(HEADER, LAYOUT, **about)


@pytest.mark.parametrize(
    ("reply", "about"),
    [
        (TRAINED, {"masked": True}),
        (MASKED, {}),
        (TRAINED, {"wants_gradient": True}),
        (TAUGHT, {}),
        (TRAINED, {"private": True}),
        (telling(TRAINED, loss=math.nan), {}),
        (silent(TRAINED, "steps", "loss"), {"silent": True}),
        (silent(TRAINED, "steps", "seconds"), {"silent": True}),
        (silent(TRAINED, "steps", "validation_auc"), {"silent": True}),
        (silent(EVALUATED, "auc"), {"silent": True}),
        (telling(TRAINED, steps=0.0), {}),
        (dataclasses.replace(EVALUATED, payload=VECTOR), {}),
        (dataclasses.replace(EVALUATED, examples=-1), {}),
        (dataclasses.replace(TRAINED, examples=0), {}),
        (dataclasses.replace(TRAINED, examples=10**9 + 1), {}),
        (dataclasses.replace(TRAINED, phase="evaluate"), {}),
        *((telling(TRAINED, **{name: -1e-9}), {}) for name in TRAIN_METRICS),
        *((telling(TRAINED, **{name: math.inf}), {}) for name in TRAIN_METRICS),
        *((telling(TRAINED, **{name: 1.5}), {}) for name in TRAIN_METRICS[3:] if name != "validation_loss"),
        (telling(TRAINED, steps=1.5), {}),
        (telling(TRAINED, steps=math.nan), {}),
        (telling(TRAINED, extra=1.0), {}),
        (dataclasses.replace(TRAINED, header=dataclasses.replace(HEADER, round=2)), {}),
        (dataclasses.replace(TRAINED, payload=VECTOR[:5]), {}),
        (dataclasses.replace(TAUGHT, gradient=VECTOR * np.float32(np.nan)), {"wants_gradient": True}),
    ],
)
def test_a_reply_that_does_not_answer_its_request_is_refused(reply: RoundReply, about: dict[str, bool]) -> None:
    with pytest.raises((MessageRefusedError, PayloadMismatchError)):
        reply.check(HEADER, LAYOUT, **about)


def test_only_a_reply_with_statistics_may_come_from_no_steps() -> None:
    payload = np.ones(WITH_MEANS.size, np.float32)
    telling(dataclasses.replace(TRAINED, payload=payload), steps=0.0).check(HEADER, WITH_MEANS)


def test_training_is_private_if_its_settings_say_so() -> None:
    request = RoundRequest(HEADER, "train", 3, VECTOR, "train")
    noise: Any = {"privacy": {"clip": 1.0, "noise_multiplier": 4.0}}
    for settings, private in ((noise, True), ({}, False)):
        whole = TrainingSettings.model_validate(settings)
        assert dataclasses.replace(request, settings=whole).private == private
    assert not request.private


@given(st.text(), st.integers(0, 40))
def test_received_text_is_logged_as_one_printable_line_of_bounded_length(text: str, maximum: int) -> None:
    clean = clean_text(text, maximum)
    assert clean.isprintable()
    assert len(clean) == min(len(text), maximum)
    assert all(one == other or not other.isprintable() for one, other in zip(clean, text, strict=False))


def test_a_value_of_a_subtype_is_refused() -> None:
    assert require_type(1, int, "round") == 1
    with pytest.raises(MessageRefusedError, match="'round' is bool, not int"):
        require_type(True, int, "round")
