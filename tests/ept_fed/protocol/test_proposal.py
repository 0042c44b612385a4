"""A proposal, the consortium's part of an experiment, and the introductions that answer it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from ept_fed.config.experiment import LOCAL_SETTINGS, Experiment
from ept_fed.errors import InputRefusedError
from ept_fed.protocol.layout import PayloadLayout, PayloadMismatchError
from ept_fed.protocol.messages import MessageRefusedError
from ept_fed.protocol.proposal import Proposal, SiteIntroduction, propose

CLASSES = "data.classes=[a, b]"
LAYOUT = PayloadLayout((("sinks", (1, 2)),))


def introduce(answered: Proposal, **changes: Any) -> SiteIntroduction:
    whole = SiteIntroduction("north", "run", answered.digest, "backbone", LAYOUT, np.zeros(2, np.float32), 5)
    return dataclasses.replace(whole, **changes)


def test_a_proposal_contains_no_settings_of_a_machine(micro: Callable[..., Experiment]) -> None:
    proposal = propose(micro(CLASSES)).model_dump()
    assert not set(proposal["data"]) & (LOCAL_SETTINGS["data"] | {"source", "partition"})
    assert not set(proposal["model"]) & LOCAL_SETTINGS["model"]
    assert not {"about", "evaluation", "benchmark"} & set(proposal)


def test_the_digest_depends_on_the_consortiums_settings_and_not_on_the_machine(
    micro: Callable[..., Experiment],
) -> None:
    digest = propose(micro(CLASSES)).digest
    assert propose(micro(CLASSES, "model.device=cpu", "data.root=elsewhere")).digest == digest
    for other in ("seed=1", "data.shots=1", "training.epochs=2", "federation.rounds=3", "model.tokens=1"):
        assert propose(micro(CLASSES, other)).digest != digest


def test_class_names_are_required(micro: Callable[..., Experiment]) -> None:
    with pytest.raises(InputRefusedError, match=r"data\.classes"):
        propose(micro())


def test_unknown_keys_are_refused(micro: Callable[..., Experiment]) -> None:
    document = propose(micro(CLASSES)).model_dump(mode="json")
    for section in ("data", "model"):
        with pytest.raises(ValidationError):
            Proposal.model_validate({**document, section: {**document[section], "root": "/", "weights": "/"}})


def test_exactly_a_proposal_with_secure_aggregation_names_its_sites_in_order(micro: Callable[..., Experiment]) -> None:
    plain = micro(CLASSES, "federation.norm_bound=null")
    secure = micro(CLASSES, "federation.norm_bound=null", "federation.secure_aggregation={}")
    assert propose(plain, ("b", "c", "a")).sites == ()
    assert propose(secure, ("b", "c", "a")).sites == ("a", "b", "c")
    for experiment, wrong in ((plain, ("a", "b", "c")), (secure, ()), (secure, ("b", "a", "c")), (secure, ("a", "a"))):
        document = propose(experiment, ("a", "b", "c")).model_dump(mode="json")
        with pytest.raises(ValidationError, match="sites must be"):
            Proposal.model_validate({**document, "sites": wrong})


@pytest.mark.parametrize("examples", [1, 10**9])
def test_a_number_of_images_at_a_bound_is_accepted(micro: Callable[..., Experiment], examples: int) -> None:
    proposal = propose(micro(CLASSES))
    introduce(proposal, examples=examples).check("run", proposal)


def test_a_matching_introduction_is_accepted(micro: Callable[..., Experiment]) -> None:
    proposal = propose(micro(CLASSES))
    introduce(proposal).check("run", proposal)


@pytest.mark.parametrize(
    "change",
    [{"run": "other"}, {"proposal": "other"}, {"code": "0"}, {"protocol": 0}, {"examples": 0}, {"examples": 10**9 + 1}],
)
def test_an_introduction_that_does_not_match_is_refused(
    micro: Callable[..., Experiment], change: dict[str, Any]
) -> None:
    proposal = propose(micro(CLASSES))
    with pytest.raises(MessageRefusedError):
        introduce(proposal, **change).check("run", proposal)


@pytest.mark.parametrize("initial", [np.zeros(3, np.float32), np.array([np.nan, 0], np.float32)])
def test_an_initial_payload_that_does_not_fit_is_refused(micro: Callable[..., Experiment], initial: Any) -> None:
    proposal = propose(micro(CLASSES))
    with pytest.raises(PayloadMismatchError):
        introduce(proposal, initial=initial).check("run", proposal)
