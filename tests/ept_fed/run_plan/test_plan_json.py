"""A plan is read back from JSON unchanged; anything else is refused with the field's name."""

import dataclasses
import json

import numpy as np
import pytest

from ept_fed.config.experiment import TrainingSettings
from ept_fed.protocol.layout import PayloadLayout, PayloadMismatchError
from ept_fed.protocol.messages import MessageRefusedError
from ept_fed.run_plan.plan import Plan
from ept_fed.run_plan.plan_json import plan_differences, plan_from_json, plan_to_json

LAYOUT = PayloadLayout((("sinks", (2, 3)), ("tokens", (2, 1, 4))), ("embedding concat", "layer 0", "layer 1"))
PLAN = Plan(
    run="r",
    seed=2**62,
    backbone_digest="d",
    layout=LAYOUT,
    initial=np.linspace(-1, 1, 14, dtype=np.float32),
    rounds=3,
    sites=("a", "b"),
    training=TrainingSettings(batch_size=4),
    strategy="fedprox",
    options={"proximal_mu": 0.1},
    weights="capped",
    weight_cap=7,
    deadline=0.1 + 0.2,
    target_auc=0.9,
)


def test_every_field_comes_back_as_it_was() -> None:
    again = plan_from_json(plan_to_json(PLAN), PLAN.initial)
    for field in dataclasses.fields(Plan):
        mine, theirs = getattr(PLAN, field.name), getattr(again, field.name)
        assert type(mine) is type(theirs)
        assert np.array_equal(mine, theirs) if field.name == "initial" else mine == theirs
    assert again.layout.hash == LAYOUT.hash
    assert plan_differences(PLAN, again) == []


def test_each_changed_field_is_named() -> None:
    other = PLAN.initial.copy()
    other[0] = np.nextafter(other[0], np.float32(0))
    for name, value in {"backbone_digest": "e", "sites": ("a",), "options": {}, "initial": other}.items():
        assert plan_differences(PLAN, dataclasses.replace(PLAN, **{name: value})) == [name]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rounds": "many"}, "rounds"),
        ({"layout": {"shapes": [["patients", [3]]], "meaning": []}}, "layout"),
        ({"weights": "richest"}, "weights"),
        ({"extra": 1}, "extra"),
    ],
)
def test_an_invalid_plan_is_refused_with_the_fields_name(change: dict[str, object], named: str) -> None:
    with pytest.raises(MessageRefusedError, match=named):
        plan_from_json(json.dumps(json.loads(plan_to_json(PLAN)) | change), PLAN.initial)


@pytest.mark.parametrize("text", ["", "[]", "{}", "[" * 100_000, "null", '"plan"'])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(MessageRefusedError):
        plan_from_json(text, PLAN.initial)


def test_an_initial_payload_of_another_layout_is_refused() -> None:
    with pytest.raises(PayloadMismatchError):
        plan_from_json(plan_to_json(PLAN), PLAN.initial[:-1])
