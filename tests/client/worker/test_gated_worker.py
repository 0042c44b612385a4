"""Tests of a worker with its gate, without a socket: for any input bytes, the reply follows the policy."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from client.audit.report import verify_ledger
from client.gate.privacy_budget import BUDGET_FILE, read_budget
from ept_fed.config.experiment import Experiment, TrainingSettings
from ept_fed.protocol.frames import Refusal, decode_frame, encode_frame
from ept_fed.protocol.messages import SPLITS, MessageRefusedError, RoundReply, RoundRequest
from ept_fed.protocol.proposal import propose
from ept_fed.protocol.stage_messages import StageRequest
from tests.client.gated_worker import Gated, join_run
from tests.effort import examples


@pytest.fixture
def gated(make_kit: Callable[..., Path], federation: Callable[..., Experiment]) -> Iterator[Gated]:
    made = join_run(make_kit(), propose(federation()))
    yield made
    made.gate.close()


def test_an_answer_with_noise_is_repeated_bit_for_bit_and_charged_once(
    make_kit: Callable[..., Path], federation: Callable[..., Experiment]
) -> None:
    private = "federation.site_privacy={noise: local, clip: 0.5, epsilon: 8.0}"
    gated = join_run(make_kit(), propose(federation(private)))
    asked = encode_frame(gated.request())
    first, again = (gated.worker.answer(asked) for _ in range(2))
    assert first == again
    reply = decode_frame(first)
    assert isinstance(reply, RoundReply), reply
    assert reply.payload is not None
    (charged,) = read_budget(gated.ledger.parent / BUDGET_FILE)
    assert charged.mechanism == "local gaussian"
    assert np.std(reply.payload - gated.met.initial) == pytest.approx(0.5 * 2 * charged.noise_multiplier, rel=0.4)
    seen = decode_frame(gated.worker.answer(encode_frame(gated.request(phase="evaluate", split="test", settings=None))))
    assert isinstance(seen, RoundReply), seen
    assert math.isnan(seen.metrics["auc"])
    gated.gate.close()


def test_shares_of_noise_below_the_fixed_point_resolution_are_refused_at_the_site(
    make_kit: Callable[..., Path], federation: Callable[..., Experiment]
) -> None:
    private = "{noise: distributed, clip: 1.0e-6, noise_multiplier: 2.0}"
    plain = "select: last, norm_bound: null, weights: uniform, secure_aggregation: {}"
    given = f"federation={{{plain}, site_privacy: {private}}}"
    proposal = propose(federation(given), ("site-1", "site-2", "site-3"))
    with pytest.raises(AssertionError, match=r"federation\.site_privacy\.clip"):
        join_run(make_kit(), proposal)


REQUESTS = st.fixed_dictionaries(
    {},
    optional={
        "phase": st.sampled_from(["train", "evaluate"]),
        "split": st.sampled_from(SPLITS),
        "rounds": st.integers(-1, 300),
        "settings": st.sampled_from(
            [
                None,
                TrainingSettings(),
                TrainingSettings(epochs=3),
                TrainingSettings(batch_size=1),
            ]
        ),
        "wants_gradient": st.booleans(),
        "shift": st.sampled_from([0.0, 0.5, 5.0, math.nan]),
        "round": st.integers(0, 3),
    },
)
CUTS = st.tuples(st.integers(0, 4000), st.integers(0, 255))


@examples(40, suppress=(HealthCheck.function_scoped_fixture,))
@given(changes=REQUESTS, flips=st.one_of(st.just([]), st.lists(CUTS, min_size=1, max_size=3)))
def test_any_input_gets_only_a_reply_that_the_policy_allows(
    gated: Gated, changes: dict[str, Any], flips: list[tuple[int, int]]
) -> None:
    moved = gated.met.initial + np.float32(changes.pop("shift", 0.0))
    header = dataclasses.replace(gated.request().header, round=changes.pop("round", 1))
    try:
        content = bytearray(encode_frame(gated.request(header=header, payload=moved, **changes)))
    except MessageRefusedError:
        content = bytearray(b"junk")
    for place, value in flips:
        content[place % len(content)] = value
    answer = decode_frame(gated.worker.answer(bytes(content)))
    assert isinstance(answer, (Refusal, RoundReply))
    if isinstance(answer, Refusal):
        assert str(gated.ledger.parent) not in answer.reason
        assert len(answer.reason) <= 300
    elif isinstance(answer, RoundReply):
        assert answer.header.layout_hash == gated.met.layout.hash
        assert answer.gradient is None
        assert (answer.payload is not None) == (answer.phase == "train")
        if answer.payload is not None:
            assert answer.payload.shape == (gated.met.layout.size,)
        assert all(math.isnan(value) or value == round(value, 3) for value in answer.metrics.values())


def test_after_refused_requests_the_ledger_is_sound_and_the_run_continues(gated: Gated) -> None:
    # The last one passes the policy, but was not agreed on; so the request that was is no replay of it.
    for content in (
        b"",
        b"junk",
        encode_frame(gated.request(wants_gradient=True)),
        encode_frame(gated.request(rounds=3, payload=gated.met.initial + np.float32(0.5))),
    ):
        assert isinstance(decode_frame(gated.worker.answer(content)), Refusal)
    reply = decode_frame(gated.worker.answer(encode_frame(gated.request())))
    assert isinstance(reply, RoundReply)
    report = verify_ledger(gated.ledger, every_signature=True)
    assert report["status"] == "sound"
    assert report["totals"]["received"]["refused"] == 4
    assert report["totals"]["sent"]["bytes"] == len(encode_frame(reply)) + len(encode_frame(gated.met))


def test_requests_that_the_gate_refuses_name_only_rules_and_leave_the_worker_free(gated: Gated) -> None:
    header = gated.request().header
    for changes, rule in (
        ({"backbone_digest": "ab" * 32}, "protocol.backbone"),
        ({"layout_hash": "ab" * 32}, "protocol.layout"),
        ({"code": "9.9"}, "incoming.code"),
        ({"protocol": 1}, "protocol.version"),
        ({"round": 9}, "protocol.round"),
    ):
        foreign = dataclasses.replace(header, **changes)
        for asked in (gated.request(header=foreign), StageRequest(foreign, "masked input", b"")):
            refusal = decode_frame(gated.worker.answer(encode_frame(asked)))
            assert isinstance(refusal, Refusal)
            assert header.backbone_digest not in refusal.reason
            if isinstance(asked, RoundRequest):
                assert refusal.reason == f"the site's gate refuses it: {rule}"
            assert gated.worker.status().run is None
