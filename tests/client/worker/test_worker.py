"""Tests of the worker without its socket: one run at a time, persistent agreements and states, and refusals."""

import dataclasses
import errno
import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.site.run_registry import RunRegistry
from client.worker.site_cache import WarmSite
from client.worker.worker import Worker
from ept_fed.config.experiment import Experiment
from ept_fed.protocol.frames import (
    Frame,
    Introduce,
    Refusal,
    decode_frame,
    encode_frame,
)
from ept_fed.protocol.messages import Header, MessageRefusedError, RoundReply, RoundRequest
from ept_fed.protocol.proposal import Proposal, SiteIntroduction, propose
from ept_fed.validation.load_site import SiteSettings, load_site_settings
from tests.client.listing_gate import ListingGate


@pytest.fixture
def proposal(federation: Callable[..., Experiment]) -> Proposal:
    return propose(federation())


@pytest.fixture
def settings(make_kit: Callable[..., Path]) -> SiteSettings:
    return load_site_settings(make_kit() / "site.yaml")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def ask(worker: Worker, frame: Frame) -> Frame:
    return decode_frame(worker.answer(encode_frame(frame)))


def introduce(worker: Worker, proposal: Proposal, run: str = "run-a") -> SiteIntroduction:
    answer = ask(worker, Introduce(run, proposal))
    assert isinstance(answer, SiteIntroduction), answer
    answer.check(run, proposal)
    return answer


def train_request(met: SiteIntroduction, proposal: Proposal, round_number: int = 1, **changes: Any) -> RoundRequest:
    header = Header(met.run, round_number, met.backbone_digest, met.layout.hash)
    settings = proposal.training
    return dataclasses.replace(RoundRequest(header, "train", 2, met.initial, "train", settings), **changes)


def refusal(answer: Frame) -> str:
    assert isinstance(answer, Refusal), answer
    return answer.reason


def test_a_run_from_proposal_to_reply_passes_the_gate_message_by_message(
    settings: SiteSettings, proposal: Proposal
) -> None:
    gate = ListingGate()
    worker = Worker(settings, gate)
    met = introduce(worker, proposal)
    trained = ask(worker, train_request(met, proposal))
    assert isinstance(trained, RoundReply)
    assert not np.array_equal(trained.payload, met.initial)
    evaluated = ask(worker, train_request(met, proposal, phase="evaluate", split="test", settings=None))
    assert isinstance(evaluated, RoundReply)
    assert gate.passed == ["proposal", "introduction", "train 1", "reply 1", "evaluate 1", "reply 1"]
    assert gate.refusals == []


def test_backbone_images_and_model_are_reused_across_runs(settings: SiteSettings, proposal: Proposal) -> None:
    clock = Clock()
    worker = Worker(settings, ListingGate(), clock=clock)
    introduce(worker, proposal)
    warm = worker._warm
    before = warm._backbone.value, warm._data.value, warm._slot.value
    clock.now += 601
    longer = proposal.model_copy(update={"federation": proposal.federation.model_copy(update={"rounds": 9})})
    introduce(worker, longer, "run-b")
    assert all(a is b for a, b in zip(before, (warm._backbone.value, warm._data.value, warm._slot.value), strict=True))
    clock.now += 601
    longer_prompts = proposal.model_copy(update={"model": proposal.model.model_copy(update={"prompt_length": 4})})
    introduce(worker, longer_prompts, "run-c")
    assert (warm._backbone.value, warm._data.value) == before[:2]
    assert warm._slot.value is not before[2]


def test_a_killed_worker_continues_without_a_new_proposal(settings: SiteSettings, proposal: Proposal) -> None:
    first = Worker(settings, ListingGate())
    met = introduce(first, proposal)
    one = train_request(met, proposal)
    reply = ask(first, one)
    assert isinstance(reply, RoundReply)
    two = train_request(met, proposal, 2, payload=reply.payload)
    expected = ask(first, two)
    second = Worker(settings, ListingGate())
    again = ask(second, two)
    assert isinstance(expected, RoundReply)
    assert isinstance(again, RoundReply)
    assert np.array_equal(expected.payload, again.payload)
    assert {**expected.metrics, "seconds": 0.0} == {**again.metrics, "seconds": 0.0}


def test_the_same_request_is_answered_with_the_same_bytes_and_without_training(
    settings: SiteSettings, proposal: Proposal, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(settings, ListingGate())
    met = introduce(worker, proposal)
    request = encode_frame(train_request(met, proposal))
    first = worker.answer(request)
    monkeypatch.setattr("client.site.site.train_local_round", lambda *_, **__: pytest.fail("it trained again"))
    assert worker.answer(request) == first


def test_a_second_run_is_refused_until_the_first_is_silent_for_ten_minutes(
    settings: SiteSettings, proposal: Proposal
) -> None:
    clock = Clock()
    gate = ListingGate()
    worker = Worker(settings, gate, clock=clock)
    introduce(worker, proposal)
    clock.now += 599
    assert "serves another run" in refusal(ask(worker, Introduce("run-b", proposal)))
    assert gate.refusals[-1][0] == "introduce"
    clock.now += 2
    introduce(worker, proposal, "run-b")
    status = worker.status()
    assert (status.run, status.runs) == ("run-b", ("run-b", "run-a"))


def test_status_is_answered_and_another_run_refused_while_the_site_trains(
    settings: SiteSettings, proposal: Proposal, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    worker = Worker(settings, ListingGate(), clock=clock)
    met = introduce(worker, proposal)
    training, go_on = threading.Event(), threading.Event()

    def stand_still(*_: Any, **__: Any) -> None:
        training.set()
        go_on.wait(60)
        raise MessageRefusedError("stopped")

    monkeypatch.setattr("client.site.site.train_local_round", stand_still)
    trainer = threading.Thread(target=ask, args=(worker, train_request(met, proposal)))
    trainer.start()
    assert training.wait(60)
    clock.now += 10**6
    status = worker.status()
    assert (status.activity, status.run, status.round) == ("train", "run-a", 1)
    assert "serves another run" in refusal(ask(worker, Introduce("run-b", proposal)))
    go_on.set()
    trainer.join(60)
    assert worker.status().activity == "idle"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_reported_loses_nothing_and_the_next_attempt_works(
    settings: SiteSettings, proposal: Proposal, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    worker = Worker(settings, ListingGate())
    met = introduce(worker, proposal)
    request = train_request(met, proposal)
    undisturbed = ask(worker, request)
    second = train_request(met, proposal, 2)
    fsync = os.fsync

    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number), "/secret/path")

    monkeypatch.setattr("ept_fed.storage.files.os.fsync", fail)
    said = refusal(ask(worker, second))
    assert "disk is full" in said
    assert "secret" not in said
    states = settings.worker.state / "run-a"
    assert sorted(path.name for path in states.iterdir()) == [
        "answers.jsonl",
        "proposal.json",
        "received.safetensors",
        "round-0001.safetensors",
    ]
    monkeypatch.setattr("ept_fed.storage.files.os.fsync", fsync)
    assert isinstance(undisturbed, RoundReply)
    assert isinstance(ask(worker, second), RoundReply)


def test_a_full_disk_at_the_proposal_leaves_no_partial_agreement(
    settings: SiteSettings, proposal: Proposal, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(settings, ListingGate())
    with monkeypatch.context() as full:
        full.setattr("ept_fed.storage.files.os.fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        assert "disk is full" in refusal(ask(worker, Introduce("run-a", proposal)))
    assert worker.status().runs == ()
    introduce(worker, proposal)


def test_exception_texts_do_not_leave_the_site(
    settings: SiteSettings, proposal: Proposal, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = ListingGate()
    worker = Worker(settings, gate)
    met = introduce(worker, proposal)
    monkeypatch.setattr(
        "client.site.site.train_local_round", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("patient_007.dcm"))
    )
    answer = ask(worker, train_request(met, proposal))
    assert answer == Refusal("the site failed; its own log says why", failed=True)
    assert gate.refusals == [("train", "the site failed; its own log says why")]


def test_settings_that_do_not_fit_are_named_without_their_values(settings: SiteSettings, proposal: Proposal) -> None:
    greedy = proposal.model_copy(update={"data": proposal.data.model_copy(update={"shots": 500})})
    said = refusal(ask(Worker(settings, ListingGate()), Introduce("run-a", greedy)))
    assert said == "refused settings: data.shots" + ", data.shots" * 4 + "; the site's own log says why"


def test_a_run_that_was_never_proposed_is_refused(settings: SiteSettings, proposal: Proposal) -> None:
    worker = Worker(settings, ListingGate())
    met = introduce(worker, proposal)
    unknown = train_request(dataclasses.replace(met, run="run-x"), proposal)
    assert "never proposed" in refusal(ask(worker, unknown))


@pytest.mark.parametrize("run", ["..", "../run", "", "a/b", "run-a\n", "\0", "x" * 65])
def test_an_invalid_run_name_is_refused(settings: SiteSettings, proposal: Proposal, run: str) -> None:
    assert refusal(ask(Worker(settings, ListingGate()), Introduce(run, proposal)))
    assert not list(settings.worker.state.iterdir())


def test_a_run_name_has_exactly_one_agreement(settings: SiteSettings, proposal: Proposal) -> None:
    registry = RunRegistry(settings.worker.state, "site-1")
    registry.agree("run-a", proposal)
    registry.agree("run-a", proposal)
    assert registry.find("run-a") == proposal
    with pytest.raises(MessageRefusedError, match="other settings"):
        registry.agree("run-a", proposal.model_copy(update={"seed": 1}))
    path = settings.worker.state / "run-a" / "proposal.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(MessageRefusedError, match="altered"):
        registry.find("run-a")


# The status request from before the status had its own socket; the worker must refuse it.
STATUS_HEAD = b'{"kind":"status","arrays":{}}'
ASKS_STATUS = struct.pack("<4sIQ", b"EPT1", len(STATUS_HEAD), 0) + STATUS_HEAD


@pytest.mark.parametrize("answer", [Refusal("no"), b"no frame", b"", ASKS_STATUS])
def test_a_frame_that_is_no_request_is_refused_and_recorded(settings: SiteSettings, answer: Any) -> None:
    gate = ListingGate()
    worker = Worker(settings, gate)
    content = answer if isinstance(answer, bytes) else encode_frame(answer)
    assert isinstance(decode_frame(worker.answer(content)), Refusal)
    assert len(gate.refusals) == 1


def test_a_refusal_by_the_gate_is_returned_and_the_refused_run_is_not_kept(
    settings: SiteSettings, proposal: Proposal
) -> None:
    class ClosedGate(ListingGate):
        def admit_proposal(self, run: str, proposal: Proposal, frame: bytes) -> None:
            raise MessageRefusedError("policy.yaml allows 3 rounds")

    gate = ClosedGate()
    worker = Worker(settings, gate)
    assert refusal(ask(worker, Introduce("run-a", proposal))) == "policy.yaml allows 3 rounds"
    assert gate.refusals == []
    assert (worker.status().run, worker.status().runs) == (None, ())


def test_a_worker_serves_exactly_one_site(make_kit: Callable[..., Path], proposal: Proposal) -> None:
    data = {"source": "phantoms", "phantom_sites": 2, "patients_per_class": 8}
    settings = load_site_settings(make_kit(data=data) / "site.yaml")
    assert "data.sites" in refusal(ask(Worker(settings, ListingGate()), Introduce("run-a", proposal)))


def test_nothing_is_loaded_before_the_first_proposal(settings: SiteSettings) -> None:
    warm = WarmSite(settings)
    assert (warm.backbone_digest, warm.training_images) == (None, None)


def test_a_finished_or_failed_run_does_not_block_another(settings: SiteSettings, proposal: Proposal) -> None:
    worker = Worker(settings, ListingGate())
    greedy = proposal.model_copy(update={"data": proposal.data.model_copy(update={"shots": 5000})})
    assert isinstance(ask(worker, Introduce("run-0", greedy)), Refusal)
    met = introduce(worker, proposal)
    assert worker.status().run == "run-a"
    other = Introduce("run-b", proposal)
    for number, phase in ((1, "train"), (2, "train"), (1, "evaluate")):
        settings_of = proposal.training if phase == "train" else None
        split = "train" if phase == "train" else "validation"
        asked = train_request(met, proposal, number, phase=phase, split=split, settings=settings_of)
        assert isinstance(ask(worker, asked), RoundReply)
        assert "serves another run" in refusal(ask(worker, other))
    last = train_request(met, proposal, 2, phase="evaluate", split="validation", settings=None)
    assert isinstance(ask(worker, last), RoundReply)
    assert not isinstance(ask(worker, other), Refusal)
